"""YAML files as plain data with the line and column of every key and value.

YAML 1.2 (`no` is a string, `1e-5` a number) without its dangerous or confusing parts: no object
tags, duplicate keys, merge keys or NaN; size, depth and aliases are bounded.
"""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xsweep.errors import ConfigError, did_you_mean, first_line

MAX_BYTES, MAX_DEPTH = 1_000_000, 20

MAX_VALUES = 100_000
"""Limit on values after aliases are expanded; an "alias bomb" has billions."""

LISTED = 20
"""Names that a message lists before it counts the rest."""

Where = tuple[str | int, ...]
"""Path of a value: ("backbones", 0, "id")."""

_TAG = "tag:yaml.org,2002:"
_SCALARS = {"null", "bool", "int", "float", "str", "timestamp", "value"}
_VARIABLE = re.compile(r"\$\{([^}]*)\}?")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def nearest(name: str, known: Collection[str]) -> str:
    """Suggest the known name closest to a wrong one, or list what is known, at most `LISTED`."""
    names = sorted(map(str, known))
    if suggestion := did_you_mean(name, names):
        return suggestion
    if not names:
        return "there are none"
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"known are {', '.join(names[:LISTED])}{more}"


class PlacedError(ConfigError):
    """An error at a place: file, line and column."""

    def __init__(self, message: str, place: tuple[str, int, int]) -> None:
        super().__init__(message)
        self.place = place


class PlacedErrors(ConfigError):
    """Errors of a file as one, a line each, in the file's order."""

    def __init__(self, errors: Iterable[ConfigError]) -> None:
        self.errors = sorted(errors, key=lambda error: getattr(error, "place", ("",)))
        super().__init__("\n".join(dict.fromkeys(map(str, self.errors))))


@dataclass(frozen=True)
class YamlFile:
    """A parsed file: its text, its data and the positions of its values."""

    path: Path
    text: str
    data: dict[str, Any]
    places: Mapping[Where, tuple[Any, Any]]
    """ruamel's nodes of the key (None for a list's item) and of the value."""
    base: "YamlFile | None" = None
    """The file that this one extends."""
    changes: Mapping[Where, str] = field(default_factory=dict)
    """Settings given in place of the file's, see `changed`."""
    errors: list[ConfigError] = field(default_factory=list, compare=False)
    """Errors found so far, see `collecting`."""

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Collect an error of the block, so that those after it are reported together with it."""
        try:
            yield
        except ConfigError as error:
            self.errors.extend(error.errors if isinstance(error, PlacedErrors) else [error])

    def raise_errors(self) -> None:
        """Raise the collected errors as one."""
        if self.errors:
            raise PlacedErrors(self.errors)

    def over(self, base: "YamlFile") -> "YamlFile":
        """This file with those top-level keys of another one that it lacks."""
        return replace(
            self,
            text=f"{self.text.rstrip()}\n\n--- # {base.path.name}\n{base.text}",
            data={**base.data, **self.data},
            base=base,
        )

    def changed(self, change: str) -> "YamlFile":
        """This file with one value replaced or added, such as `training.lr=5e-5`.

        Its text records the change as a comment.
        """
        name, equals, text = change.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {change}: write KEY=VALUE, such as training.lr=5e-5")
        data = deepcopy(self.data)
        block: Any = data
        *above, last = name.split(".")
        where: Where = ()
        for part in (*above, last):
            step = int(part) if isinstance(block, list) and part.isdigit() else part
            if not (
                isinstance(block, dict) or (isinstance(block, list) and step in range(len(block)))
            ):
                path = ".".join(map(str, where))
                raise ConfigError(f"--set {change}: {path} has no entry {part!r}")
            where = *where, step
            if len(where) <= len(above):
                if isinstance(block, dict) and block.get(part) is None:
                    block[part] = {}
                block = block[step]
        block[where[-1]] = parse(text, Path(f"--set {name}"))
        recorded = f"{self.text.rstrip()}\n# --set {change}\n"
        return replace(self, text=recorded, data=data, changes={**self.changes, where: change})

    def position(self, where: Where, *, at_key: bool = False) -> tuple[int, int]:
        """Line and column, from 1, of a value or of its key.

        Steps that are not in the file (names of alternatives, missing keys) are skipped.
        """
        places = self._owner(where).places
        found: Where = ()
        for step in where:
            if (*found, step) in places:
                found = (*found, step)
        key, value = places[found]
        mark = (key if at_key and key else value).start_mark
        return mark.line + 1, mark.column + 1

    def error(self, where: Where, message: str, *, at_key: bool = False) -> PlacedError:
        """An error that begins with `file:line:column`, see `position`."""
        for given, change in self.changes.items():
            if where[: len(given)] == given:
                return PlacedError(f"--set {change}: {message}", ("", 0, 0))
        place = str(self._owner(where).path), *self.position(where, at_key=at_key)
        return PlacedError(f"{':'.join(map(str, place))}: {message}", place)

    def unknown(
        self, where: Where, kind: str, name: str, known: Collection[str], *, at_key: bool = False
    ) -> PlacedError:
        """An error for an unknown name, with the nearest known one."""
        return self.error(where, f"unknown {kind} {name!r}: {nearest(name, known)}", at_key=at_key)

    def _owner(self, where: Where) -> "YamlFile":
        """The file that a value comes from: this one or its base."""
        if self.base and where and where[:1] not in self.places and where[0] in self.base.data:
            return self.base._owner(where)
        return self


def read_yaml(path: Path, variables: Mapping[str, str | None]) -> YamlFile:
    """Read a mapping from a YAML file, with `${name}` replaced by the variables.

    Raises ConfigError with `file:line:column` for anything but plain YAML, and for a variable that
    is unknown or not set (None).
    """
    text = _read_text(path)
    root, constructor = _compose(text, path)
    if root is None or root.id != "mapping":
        raise ConfigError(
            f"{path}:1:1: a grid file is a mapping of keys such as `name:` and "
            "`backbones:`; see sweeps/quickstart.yaml"
        )
    reader = _Reader(path, variables, constructor)
    return YamlFile(path, text, reader.value((), None, root), reader.places)


def parse(text: str, path: Path) -> Any:
    """The plain value of a text, under the rules of `read_yaml`."""
    root, constructor = _compose(text, path)
    return None if root is None else _Reader(path, {}, constructor).value((), None, root)


def _compose(text: str, path: Path) -> tuple[Any, Any]:
    """The root of ruamel's nodes and the constructor of their values."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    yaml = YAML(typ="safe", pure=True)
    try:
        return yaml.compose(text), yaml.constructor
    except MarkedYAMLError as problem:
        raise _error(path, problem.problem_mark, f"not valid YAML: {problem.problem}") from problem
    except YAMLError as problem:  # a character that YAML does not allow
        place = _place(text[: getattr(problem, "position", 0)])
        raise ConfigError(f"{path}:{place}: not valid YAML: {first_line(problem)}") from problem
    except RecursionError as problem:
        raise ConfigError(f"{path}: nested far too deep") from problem


def _read_text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(
                f"{path} has {size / 1e6:.1f} MB; a grid file has at most {MAX_BYTES / 1e6:.0f} MB"
            )
        content = path.read_bytes()
    except OSError as problem:
        raise ConfigError(f"{path}: cannot be read: {problem.strerror or problem}") from problem
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise ConfigError(
            f"{path}:{_place(content[: problem.start].decode())}: byte "
            f"{content[problem.start]:#04x} is not UTF-8: save the file as UTF-8 text"
        ) from problem


def _place(before: str) -> str:
    """`line:column` of the position after a text."""
    return f"{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"


def _error(path: Path, mark: Any, message: str) -> ConfigError:
    return ConfigError(f"{path}:{mark.line + 1}:{mark.column + 1}: {message}")


@dataclass
class _Reader:
    """Converts ruamel's nodes, which have positions, into plain data."""

    path: Path
    variables: Mapping[str, str | None]
    constructor: Any
    places: dict[Where, tuple[Any, Any]] = field(default_factory=dict)

    def value(self, where: Where, key: Any, node: Any) -> Any:
        if len(where) > MAX_DEPTH:
            raise self._fail(node, f"nested deeper than {MAX_DEPTH} levels")
        if len(self.places) > MAX_VALUES:
            raise self._fail(node, f"more than {MAX_VALUES:,} values, aliases expanded")
        self.places[where] = key, node
        match node.id, str(node.tag).removeprefix(_TAG):
            case "mapping", "map":
                return self._mapping(where, node)
            case "sequence", "seq":
                return [self.value((*where, i), None, item) for i, item in enumerate(node.value)]
            case "scalar", "str" | "timestamp" | "value":
                self._require_storable(node)
                return _VARIABLE.sub(lambda found: self._variable(node, found), node.value)
            case "scalar", "null" | "bool" | "int" | "float" as kind:
                return self._constant(node, kind)
        message = f"the tag {str(node.tag)!r} is not allowed: a grid file holds plain data"
        raise self._fail(node, message)

    def _mapping(self, where: Where, node: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            kind = str(key.tag).removeprefix(_TAG)
            if kind == "merge":
                raise self._fail(key, "merge keys (<<) are not supported: write the keys out")
            if key.id != "scalar" or kind not in _SCALARS:
                raise self._fail(key, "a key must be a string")
            self._require_storable(key)
            if key.value in found:
                first = self.places[*where, key.value][0].start_mark.line + 1
                raise self._fail(key, f"duplicate key {key.value!r} (first in line {first})")
            found[key.value] = self.value((*where, key.value), key, value)
        return found

    def _constant(self, node: Any, kind: str) -> bool | int | float | None:
        try:
            found = self.constructor.construct_object(node)
        except (ValueError, KeyError) as problem:
            type_name = "a boolean" if kind == "bool" else f"a number of type {kind}"
            raise self._fail(node, f"{node.value[:40]!r} is not {type_name}") from problem
        if kind == "float" and not math.isfinite(found):
            raise self._fail(node, f"{node.value[:40]} is not a finite number")
        return found

    def _variable(self, node: Any, found: re.Match[str]) -> str:
        name = found[1]
        if name not in self.variables or not found[0].endswith("}"):
            known = ", ".join(f"${{{variable}}}" for variable in self.variables)
            raise self._fail(node, f"unknown variable {found[0]!r}: known is {known}")
        value = self.variables[name]
        if value is None:
            flag = name.replace("_", "-")
            message = f"${{{name}}} is not set: give --{flag} or XSWEEP_{name.upper()}"
            raise self._fail(node, message)
        return value

    def _require_storable(self, node: Any) -> None:
        if _UNSTORABLE.search(node.value):
            raise self._fail(node, "a NUL or half of a surrogate pair, which no database stores")

    def _fail(self, node: Any, message: str) -> ConfigError:
        return _error(self.path, node.start_mark, message)
