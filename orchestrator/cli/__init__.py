"""The command line `xsweep`: one file per group of commands, heavy imports inside the commands."""

from orchestrator.cli import data, database, doctor, evaluate, jobs, report, status, sweeps
from orchestrator.cli.app import app, main

__all__ = ["app", "data", "database", "doctor", "evaluate", "jobs", "main"]
__all__ += ["report", "status", "sweeps"]
