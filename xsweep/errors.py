"""Errors that every package raises, and the wording that their messages share."""

from collections.abc import Iterable, Sequence
from typing import Any


class XsweepError(Exception):
    """Something a user can act on: the message says what was wrong, where, and what to do.

    `failure` is the class under which the job table counts it (see `xsweep.db.schema.RETRIES`),
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
    """A loss, a gradient or a score is not a finite number."""

    failure = "NAN"


class Stopped(XsweepError):
    """Work left on request after saving what it had; it costs no attempt."""

    failure = "PREEMPTED"


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """A question that names the known names nearest to a wrong one; empty where none is near.

    `did_you_mean("infonze", ["bce", "infonce"])` is "did you mean 'infonce'?".
    """
    from difflib import get_close_matches

    by_lower_name = {each.lower(): each for each in known}
    near = get_close_matches(name.lower(), by_lower_name, n=most)
    listed = " or ".join(repr(by_lower_name[each]) for each in near)
    return f"did you mean {listed}?" if near else ""


def unknown_name(message: str, name: str, known: Sequence[str]) -> ConfigError:
    """An error that ends in the names nearest to a wrong one, and in at most 12 known ones."""
    hint = did_you_mean(name, known, most=3)
    listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return ConfigError(f"{message}{f'; {hint}' if hint else '.'} There are: {listed}")


def field_errors(error: Any) -> str:
    """The wrong fields of a pydantic ValidationError: `optimisation.lr should be ..., not 'x'`."""
    return "; ".join(field_error(".".join(map(str, each["loc"])), each) for each in error.errors())


def field_error(name: str, error: Any) -> str:
    """One of pydantic's errors about the field `name`, with the value that it had."""
    found, message = repr(error["input"]), error["msg"].removeprefix("Input ")
    match error["type"]:
        case "value_error":
            return f"{name or 'the spec'}: {error['ctx']['error']}".removesuffix(".")
        case "missing":
            return f"{name} is missing"
        case "extra_forbidden":
            return f"{name} is unknown"
        case "dict_type" | "model_type":
            message = "should be a block of keys"
    found = found if len(found) < 60 else f"{found[:57]}..."
    return f"{name} {message[:1].lower()}{message[1:]}, not {found}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not blank, or the name of its class."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)
