"""The command line `xsweep`: one file per group of commands, heavy imports inside the commands."""

import xsweep.orchestrator.cli.admin
import xsweep.orchestrator.cli.data
import xsweep.orchestrator.cli.evaluate
import xsweep.orchestrator.cli.jobs
import xsweep.orchestrator.cli.report
import xsweep.orchestrator.cli.status
import xsweep.orchestrator.cli.sweep  # noqa: F401 - each adds its commands to the program
from xsweep.orchestrator.cli.app import app, main

__all__ = ["app", "main"]
