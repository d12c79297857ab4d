"""YAML that people write by hand: plain data with the line and column of every key and value.

YAML 1.2 (`no` is a word, `1e-5` a number) without its dangerous or confusing parts: no tags that
make objects, no duplicate keys, no merge keys, no NaN, bounded size, depth and aliases.
"""

import difflib
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xsweep import ConfigError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_VALUES = 100_000
"""After aliases are expanded; an "alias bomb" has billions."""

Where = tuple[str | int, ...]
"""Keys and indices that lead to a value: ("backbones", 0, "id")."""

_TAG = "tag:yaml.org,2002:"
_SCALARS = {"null", "bool", "int", "float", "str", "timestamp", "value"}
_VARIABLE = re.compile(r"\$\{([^}]*)\}?")


def nearest(name: str, known: Collection[str]) -> str:
    """A sentence that suggests the known name that is most like a wrong one, or lists them."""
    by_lower_name = {str(other).lower(): str(other) for other in known}
    close = difflib.get_close_matches(name.lower(), by_lower_name, n=1)
    if close:
        return f"did you mean {by_lower_name[close[0]]!r}?"
    return f"known are {', '.join(sorted(by_lower_name.values()))}" if known else "there are none"


@dataclass(frozen=True)
class YamlFile:
    """A parsed file: its text, its data and where everything in it stands."""

    path: Path
    text: str
    data: dict[str, Any]
    keys: Mapping[Where, tuple[int, int]]
    """Line and column, from 1, of the key that leads to a value."""
    values: Mapping[Where, tuple[int, int]]
    base: "YamlFile | None" = None
    """The file that has the top-level keys which this one does not give."""

    def over(self, base: "YamlFile") -> "YamlFile":
        """This file with the top-level keys of another one where it has none of its own."""
        return replace(
            self,
            text=f"{self.text.rstrip()}\n\n--- # {base.path.name}\n{base.text}",
            data={**base.data, **self.data},
            base=base,
        )

    def position(self, where: Where, *, at_key: bool = False) -> tuple[int, int]:
        """Line and column of a value, or of its key.

        Steps that are not in the file (names of alternatives, missing keys) are passed over.
        """
        if self._in_base(where):
            assert self.base
            return self.base.position(where, at_key=at_key)
        found: Where = ()
        for step in where:
            if (*found, step) in self.values:
                found = (*found, step)
        return self.keys[found] if at_key and found in self.keys else self.values[found]

    def error(self, where: Where, message: str, *, at_key: bool = False) -> ConfigError:
        """A ConfigError that begins with `file:line:column`, see `position`."""
        if self._in_base(where):
            assert self.base
            return self.base.error(where, message, at_key=at_key)
        line, column = self.position(where, at_key=at_key)
        return ConfigError(f"{self.path}:{line}:{column}: {message}")

    def _in_base(self, where: Where) -> bool:
        return bool(
            self.base and where and where[:1] not in self.values and where[0] in self.base.data
        )


def read_yaml(path: Path, variables: Mapping[str, str | None]) -> YamlFile:
    """Read a mapping from a YAML file, `${name}` replaced by the variables.

    Raises ConfigError with `file:line:column` for everything that is not plain YAML, and for a
    variable that is unknown or not set (None).
    """
    text = _read_text(path)
    return _Reader(path, text, variables).read()


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
        line = content.count(b"\n", 0, problem.start) + 1
        column = problem.start - content.rfind(b"\n", 0, problem.start)
        raise ConfigError(
            f"{path}:{line}:{column}: byte {content[problem.start]:#04x} is not UTF-8: "
            "save the file as UTF-8 text"
        ) from problem


class _Reader:
    """Turns ruamel's nodes, which know their positions, into plain data."""

    def __init__(self, path: Path, text: str, variables: Mapping[str, str | None]) -> None:
        self.path, self.text, self.variables = path, text, variables
        self.keys: dict[Where, tuple[int, int]] = {}
        self.values: dict[Where, tuple[int, int]] = {}

    def read(self) -> YamlFile:
        root = self._compose()
        if root is None or root.id != "mapping":
            raise ConfigError(
                f"{self.path}:1:1: a grid file is a mapping of keys such as `name:` and "
                "`backbones:`; see sweeps/quickstart.yaml"
            )
        data = self._value(root, ())
        return YamlFile(self.path, self.text, data, self.keys, self.values)

    def _compose(self) -> Any:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import MarkedYAMLError, YAMLError

        try:
            return YAML(typ="safe", pure=True).compose(self.text)
        except MarkedYAMLError as problem:
            mark = problem.problem_mark or problem.context_mark
            at = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
            raise ConfigError(f"{self.path}{at}: not valid YAML: {problem.problem}") from problem
        except YAMLError as problem:  # a character that YAML does not allow
            position = int(getattr(problem, "position", 0))
            line = self.text.count("\n", 0, position) + 1
            column = position - self.text.rfind("\n", 0, position)
            what = str(problem).strip().splitlines()[0]
            raise ConfigError(f"{self.path}:{line}:{column}: not valid YAML: {what}") from problem
        except RecursionError as problem:
            raise ConfigError(f"{self.path}: nested far too deep") from problem

    def _fail(self, node: Any, message: str) -> ConfigError:
        mark = node.start_mark
        return ConfigError(f"{self.path}:{mark.line + 1}:{mark.column + 1}: {message}")

    def _value(self, node: Any, where: Where) -> Any:
        if len(where) > MAX_DEPTH:
            raise self._fail(node, f"nested deeper than {MAX_DEPTH} levels")
        if len(self.values) > MAX_VALUES:
            raise self._fail(node, f"more than {MAX_VALUES:,} values, aliases expanded")
        self.values[where] = (node.start_mark.line + 1, node.start_mark.column + 1)
        tag = str(node.tag)
        kind = tag.removeprefix(_TAG)
        if node.id == "mapping" and kind == "map":
            return self._mapping(node, where)
        if node.id == "sequence" and kind == "seq":
            return [self._value(item, (*where, i)) for i, item in enumerate(node.value)]
        if node.id == "scalar" and kind in _SCALARS:
            return self._scalar(node, kind)
        raise self._fail(node, f"the tag {tag!r} is not allowed: a grid file holds plain data")

    def _mapping(self, node: Any, where: Where) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                raise self._fail(key_node, "merge keys (<<) are not supported: write the keys out")
            if key_node.id != "scalar" or str(key_node.tag).removeprefix(_TAG) not in _SCALARS:
                raise self._fail(key_node, "a key must be a word")
            key = str(key_node.value)
            if key in found:
                first, _ = self.keys[*where, key]
                raise self._fail(key_node, f"duplicate key {key!r} (first in line {first})")
            self.keys[*where, key] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            found[key] = self._value(value_node, (*where, key))
        return found

    def _scalar(self, node: Any, kind: str) -> Any:
        text = str(node.value)
        if kind == "null":
            return None
        if kind == "bool" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if kind in ("int", "float"):
            return self._number(node, kind, text.replace("_", "").lower())
        return self._interpolated(node, text)

    def _number(self, node: Any, kind: str, text: str) -> int | float:
        try:
            if kind == "int":
                return int(text, 0 if re.match("[-+]?0[xob]", text) else 10)
            number = float(text.replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError as problem:
            raise self._fail(node, f"{text[:40]!r} is not a number of type {kind}") from problem
        if not math.isfinite(number):
            raise self._fail(node, f"{text[:40]} is not a finite number")
        return number

    def _interpolated(self, node: Any, text: str) -> str:
        def replaced(found: re.Match[str]) -> str:
            name = found[1]
            if name not in self.variables or not found[0].endswith("}"):
                known = ", ".join(f"${{{variable}}}" for variable in self.variables)
                raise self._fail(node, f"unknown variable {found[0]!r}: known is {known}")
            value = self.variables[name]
            if value is None:
                flag = name.replace("_", "-")
                raise self._fail(
                    node, f"${{{name}}} is not set: give --{flag} or XSWEEP_{name.upper()}"
                )
            return value

        return _VARIABLE.sub(replaced, text)
