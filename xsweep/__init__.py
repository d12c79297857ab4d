"""Train and compare cross-encoder re-rankers: a grid file in, tables that a reviewer trusts out.

Importing this package loads nothing else; each name of the Python interface loads its module when
it is first used.
"""

__version__ = "0.1.0"

INTERFACE = {
    "ConfigError": "xsweep.errors",
    "DataError": "xsweep.errors",
    "SetupError": "xsweep.errors",
    "XsweepError": "xsweep.errors",
    **dict.fromkeys(
        ("compare", "curves", "load_model", "per_query", "report", "results", "run", "status"),
        "xsweep.interface",
    ),
    "submit": "xsweep.interface",
}
"""The module of each public name."""


def __getattr__(name: str) -> object:
    if name not in INTERFACE:
        raise AttributeError(f"module 'xsweep' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(INTERFACE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *INTERFACE})
