"""The command line `xsweep`: one file per group of commands, heavy imports inside the commands."""

import orchestrator.cli.archive
import orchestrator.cli.compare
import orchestrator.cli.data
import orchestrator.cli.database
import orchestrator.cli.doctor
import orchestrator.cli.evaluate
import orchestrator.cli.jobs
import orchestrator.cli.metrics
import orchestrator.cli.plan
import orchestrator.cli.report
import orchestrator.cli.serve
import orchestrator.cli.status
import orchestrator.cli.sweeps  # noqa: F401 - each adds its commands to the program
from orchestrator.cli.app import app, main

__all__ = ["app", "main"]
