"""Read and validate grid files; every error names file, line, column and a remedy."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError, create_model
from pydantic.fields import FieldInfo

from xsweep.errors import field_error, unknown_name
from xsweep.evaluator.specs import Spec
from xsweep.orchestrator.grid.schema import (
    FirstStage,
    Grid,
    Need,
    Objective,
    Stage,
    Teacher,
    TrainingSettings,
)
from xsweep.orchestrator.grid.yaml import (
    PlacedError,
    PlacedErrors,
    Where,
    YamlFile,
    nearest,
    read_yaml,
)

SHIPPED = Path(__file__).resolve().parents[2] / "sweeps"
_SWITCHES = {
    name
    for block in (Grid, Teacher, FirstStage, TrainingSettings, Need)
    for name, field in block.model_fields.items()
    if field.annotation is bool
}
"""Keys with boolean values."""

_OPTIONAL: dict[str, Any] = {
    name: (field.annotation, FieldInfo.merge_field_infos(field, default=None))
    for name, field in TrainingSettings.model_fields.items()
}
_GIVEN: Any = create_model("_GIVEN", __base__=Spec, **_OPTIONAL)
"""Training settings of which none is required."""

SYNONYMS = {
    **dict.fromkeys(
        ("epochs", "num_epochs", "num_train_epochs"),
        "this file counts `steps`, each of `batch_queries` queries",
    ),
    **dict.fromkeys(("max_steps", "train_steps"), "it is called `steps`"),
    "learning_rate": "it is called `lr`",
    **dict.fromkeys(
        ("batch_size", "train_batch_size", "per_device_train_batch_size"),
        "it is called `batch_queries`: queries per step, each with its teacher's documents",
    ),
    **dict.fromkeys(("max_length", "max_seq_length"), "give `query_tokens` and `document_tokens`"),
    **dict.fromkeys(("fp16", "bf16", "amp"), "it is called `precision`: `bf16` or `fp32`"),
    **dict.fromkeys(("warmup_ratio", "warmup"), "it is called `warmup_steps`, a number of steps"),
    **dict.fromkeys(
        ("model", "models"),
        "models to train are `backbones:`, each with `id`, `package` or `folder`",
    ),
    **dict.fromkeys(
        ("dataset", "datasets"), "it is called `collection` to train on, `collections` to test on"
    ),
    **dict.fromkeys(("metric", "metrics"), "it is called `measures`, in `validation` `measure`"),
}
"""Keys of other programs, with what a grid file has in their place."""


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


def read_grid(
    path: Path, data_home: Path | None = None, changes: Iterable[str] = ()
) -> tuple[Grid, YamlFile]:
    """Read a grid file and check its form; `${data_home}` stands for the given folder.

    `changes` replace or add values: `training.lr=5e-5`, `backbones.0.layers=2`.

    A file that `extends` another one inherits the top-level keys that it lacks. Raises ConfigError
    with `file:line:column` for each error.
    """
    file = _read_with_base(path, {"data_home": str(data_home) if data_home else None}, ())
    for change in changes:
        file = file.changed(change)
    file.errors.extend(
        # pydantic would read true as the number 1
        file.error(where, f"{'.'.join(map(str, where))} does not accept a boolean")
        for where in _booleans(file.data, ())
        if where[-1] not in _SWITCHES
    )
    _check_training(file)
    with file.collecting():
        try:
            grid = Grid.model_validate(file.data)
        except ValidationError as problem:
            raise located(problem, file) from problem
    file.raise_errors()
    return grid, file


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


def located(problem: ValidationError, file: YamlFile, where: Where = ()) -> PlacedErrors:
    """All of pydantic's errors, at their places in the file.

    `where` is the path of the block that was validated.
    """
    errors = problem.errors()
    misspelt = {each["loc"][:-1] for each in errors if each["type"] == "extra_forbidden"}
    inner = {each["loc"][:end] for each in errors for end in range(len(each["loc"]))}
    # A misspelt key is also missing under its right name, and a list of wrong entries too short.
    return PlacedErrors(
        _located(each, file, where)
        for each in errors
        if not (each["type"] == "missing" and each["loc"][:-1] in misspelt)
        and not (each["type"] == "too_short" and each["loc"] in inner)
    )


def _located(error: Any, file: YamlFile, where: Where) -> PlacedError:
    loc, value = error["loc"], error["input"]
    named = [str(step) for step in (*where, *loc) if step != "[key]"]
    name = ".".join(named) or "the grid"
    match error["type"]:
        case "extra_forbidden":
            return unknown_key(file, (*where, *loc), _known_keys((*where, *loc[:-1])))
        case "missing":
            return file.error((*where, *loc), f"the key {name!r} is missing")
        case "too_short":
            return file.error((*where, *loc), f"{name} is empty: it needs at least one entry")
        case "tuple_type":
            return file.error((*where, *loc), f"{name} is a list: write [{value}]")
    hint = ": write it in quotes" if error["type"] == "string_type" and value is not None else ""
    return file.error((*where, *loc), f"{field_error(name, error)}{hint}")


def unknown_key(file: YamlFile, where: Where, known: Collection[str]) -> PlacedError:
    """An error for a key, with what other programs' name for it is here, or the nearest key."""
    name = str(where[-1])
    if hint := SYNONYMS.get(name.lower()):
        return file.error(where, f"unknown key {name!r}: {hint}", at_key=True)
    return file.unknown(where, "key", name, known, at_key=True)


def _check_training(file: YamlFile) -> None:
    """Collect the errors of all training settings, key by key, wherever the file gives some."""
    for where, block, others in _training_blocks(file.data):
        known = [*TrainingSettings.model_fields, *others]
        given = block if isinstance(block, dict) else {}
        unknown = given.keys() - set(known)
        file.errors.extend(unknown_key(file, (*where, key), known) for key in unknown)
        settings = {key: given[key] for key in given.keys() & TrainingSettings.model_fields.keys()}
        with file.collecting():
            try:
                _GIVEN.model_validate(settings)
            except ValidationError as problem:
                raise located(problem, file, where) from problem


def _training_blocks(grid: Mapping[str, Any]) -> Iterator[tuple[Where, Any, Collection[str]]]:
    """Blocks of training settings, of any form, with the other keys that they may have."""
    yield ("training",), grid.get("training"), ["collection"]
    for name in ("overrides", "search"):
        for place, rule in _items(grid.get(name)):
            yield (name, place, "training"), dict(_items(rule)).get("training"), ()
    for name, entry in _items(grid.get("objectives")):
        yield ("objectives", name), entry, Objective.model_fields
        for place, stage in _items(dict(_items(entry)).get("stages")):
            yield ("objectives", name, "stages", place), stage, Stage.model_fields


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    """Keys and values of a mapping, places and items of a list, nothing of anything else."""
    if isinstance(value, list):
        return enumerate(value)
    return value.items() if isinstance(value, dict) else ()


def _booleans(value: Any, where: Where) -> Iterator[Where]:
    if isinstance(value, bool):
        yield where
    for step, item in _items(value):
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
