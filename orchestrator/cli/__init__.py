"""The command line `xsweep`: one file per group of commands; heavy imports stay inside them."""

from importlib import import_module
from pkgutil import iter_modules

from xsweep.orchestrator.cli.app import app, main

__all__ = ["app", "main"]

for _file in iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")
