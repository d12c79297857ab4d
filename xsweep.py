"""xsweep's version and the errors that every package raises."""

__version__ = "0.1.0"


class XsweepError(Exception):
    """Something a user can act on: the message says what was wrong, where, and what to do.

    `failure` is the class under which the job table counts it (see `orchestrator.failures`),
    `exit_code` what the command line returns.
    """

    failure = "UNKNOWN"
    exit_code = 1


class ConfigError(XsweepError, ValueError):
    """A setting is wrong: trying again changes nothing until somebody edits it."""

    failure = "CONFIG"
    exit_code = 2


class DataError(XsweepError, ValueError):
    """A data file is missing, damaged or not what was declared."""

    failure = "DATA"
    exit_code = 2


class SetupError(XsweepError, RuntimeError):
    """The environment is wrong: a database, store, cluster or package does not answer."""

    failure = "INFRA"
    exit_code = 3


class DivergenceError(XsweepError, ArithmeticError):
    """A training's loss or gradient is no longer a finite number."""

    failure = "NAN"


class Stopped(XsweepError):
    """Work left on request after saving what it had; it costs no attempt."""

    failure = "PREEMPTED"
