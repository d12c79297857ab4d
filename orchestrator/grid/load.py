"""Read and validate grid files; every error names file, line, column and a remedy."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from xsweep.errors import ConfigError, unknown_name
from xsweep.orchestrator.grid.schema import FirstStage, Grid, Need, Teacher, TrainingSettings
from xsweep.orchestrator.grid.yaml import Where, YamlFile, nearest, read_yaml

SHIPPED = Path(__file__).resolve().parents[2] / "sweeps"
_SWITCHES = {
    name
    for block in (Grid, Teacher, FirstStage, TrainingSettings, Need)
    for name, field in block.model_fields.items()
    if field.annotation is bool
}
"""Keys with boolean values."""


def find_grid(path: Path) -> Path:
    """A path to a grid file as it is; a bare name such as `quickstart` is a shipped grid's.

    Raises ConfigError for a bare name that is neither.
    """
    if path.exists() or path.suffix or len(path.parts) > 1:
        return path
    known = {grid.stem: grid for grid in sorted(SHIPPED.glob("*.yaml"))}
    if path.name not in known:
        message = f"no grid file {path}: give a path, or the name of a shipped grid"
        raise unknown_name(message, path.name, [*known])
    return known[path.name]


def read_grid(path: Path, data_home: Path | None = None) -> tuple[Grid, YamlFile]:
    """Read a grid file and check its form; `${data_home}` stands for the given folder.

    A file that `extends` another one inherits the top-level keys that it lacks. Raises ConfigError
    with `file:line:column` for the first error.
    """
    file = _read_with_base(path, {"data_home": str(data_home) if data_home else None}, ())
    for where in _booleans(file.data, ()):
        if where[-1] not in _SWITCHES:
            # pydantic would read true as the number 1
            raise file.error(where, f"{'.'.join(map(str, where))} does not accept a boolean")
    try:
        return Grid.model_validate(file.data), file
    except ValidationError as problem:
        raise located(problem, file) from problem


def _read_with_base(
    path: Path, variables: Mapping[str, str | None], above: tuple[Path, ...]
) -> YamlFile:
    file = read_yaml(path, variables)
    name = file.data.get("extends")
    if name is None:
        return file
    if not isinstance(name, str) or Path(name).name != name:
        message = f"extends names a grid file of the same folder, not {name!r}"
        raise file.error(("extends",), message)
    base = path.parent / name
    if base in (path, *above):
        raise file.error(("extends",), f"circular `extends`: {name} extends this file")
    if not base.is_file():
        others = [each.name for each in path.parent.glob("*.y*ml") if each != path]
        raise file.error(("extends",), f"there is no {base}: {nearest(name, others)}")
    return file.over(_read_with_base(base, variables, (path, *above)))


def located(problem: ValidationError, file: YamlFile, where: Where = ()) -> ConfigError:
    """The first of pydantic's errors as a ConfigError at its position in the file.

    `where` is the path of the block that was validated.
    """
    first = min(
        problem.errors(),
        # A misspelt key is also missing under its right name, and a list of wrong entries is also
        # too short: the more specific error comes first.
        key=lambda error: (
            error["type"] in ("missing", "too_short"),
            file.position((*where, *error["loc"])),
        ),
    )
    loc, value = first["loc"], first["input"]
    name = ".".join(map(str, (*where, *loc))) or "the grid"
    match first["type"]:
        case "extra_forbidden":
            known = _known_keys((*where, *loc[:-1]))
            return file.unknown((*where, *loc), "key", str(loc[-1]), known, at_key=True)
        case "missing":
            return file.error((*where, *loc), f"the key {name!r} is missing")
        case "too_short":
            return file.error((*where, *loc), f"{name} is empty: it needs at least one entry")
        case "value_error":
            return file.error((*where, *loc), f"{name}: {first['ctx']['error']}")
    message = first["msg"].removeprefix("Input ")
    hint = ": write it in quotes" if first["type"] == "string_type" and value is not None else ""
    found = repr(value)
    found = found if len(found) < 60 else f"{found[:57]}..."
    message = f"{name} {message[:1].lower()}{message[1:]}, not {found}{hint}"
    return file.error((*where, *loc), message)


def _booleans(value: Any, where: Where) -> Iterator[Where]:
    if isinstance(value, bool):
        yield where
    elif isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for step, item in items:
            yield from _booleans(item, (*where, step))


def _known_keys(where: Where) -> list[str]:
    """Keys of the block at this path."""
    blocks: list[type[BaseModel]] = [Grid]
    for step in where:
        for block in blocks:
            if step in block.model_fields:
                blocks = list(_blocks_in(block.model_fields[str(step)].annotation))
                break
    return [name for block in blocks for name in block.model_fields]


def _blocks_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _blocks_in(part)
