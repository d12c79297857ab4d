"""The job table: what was asked for, what runs, what came out, and everything that happened.

`engine` opens a database, `jobs` has the verbs, `status` and `results` read.
"""
