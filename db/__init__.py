"""The job table: what was asked for, what runs, what came out, and everything that happened.

`db.engine` opens a database, `db.jobs` has the verbs, `db.status` and `db.results` read.
"""
