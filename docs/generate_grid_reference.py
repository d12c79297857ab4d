"""Generate the reference of grid files from the models that read them.

`python docs/generate_grid_reference.py > docs/grid-reference.md`
"""

import ast
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo

from xsweep.evaluator.specs import (
    Bm25Spec,
    ColumnsSpec,
    DenseSpec,
    FileSpec,
    ListwiseSpec,
    ModelSpec,
    PromptSpec,
    SpladeSpec,
)
from xsweep.orchestrator.grid import schema
from xsweep.orchestrator.grid.schema import Range
from xsweep.trainer.specs import AshaSpec, LoraSpec

BLOCKS: dict[str, type[BaseModel]] = {
    "top level": schema.Grid,
    "collections.NAME": schema.Collection,
    "backbones[]": schema.Backbone,
    "teachers.NAME": schema.Teacher,
    "teachers.NAME.prompt": PromptSpec,
    "teachers.NAME.listwise": ListwiseSpec,
    "teachers.NAME.columns": ColumnsSpec,
    "objectives.NAME": schema.Objective,
    "objectives.NAME.plus.LOSS": schema.Term,
    "objectives.NAME.stages[]": schema.Stage,
    "training, and training settings elsewhere": schema.TrainingSettings,
    "training.lora": LoraSpec,
    "overrides[]": schema.Override,
    "match, exclude[], include[]": schema.Match,
    "search[]": schema.Search,
    "search[].space.SETTING": Range,
    "search[].asha": AshaSpec,
    "validation": schema.Validation,
    "evaluation": schema.Evaluation,
    "first_stage": schema.FirstStage,
    "first_stage.bm25": Bm25Spec,
    "first_stage.dense": DenseSpec,
    "first_stage.splade": SpladeSpec,
    "model": ModelSpec,
    "file": FileSpec,
    "resources.KIND": schema.Need,
}
"""Path of each block in a file, and the model that reads it."""

_NAMES = {model: place for place, model in BLOCKS.items()}
_TYPE_NAMES = {
    ByteSize: "size",
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    dict: "mapping",
}


def grid_reference() -> str:
    """The page as Markdown: one table of keys per block."""
    parts = [
        "# Grid file reference",
        "",
        "Written by `python docs/generate_grid_reference.py` from the models that read grid files;",
        "[grid.md](grid.md) explains the same keys in their context. A key without a default is",
        "required; keys that are not listed are errors.",
    ]
    for place, model in BLOCKS.items():
        first = inspect.cleandoc(model.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        parts += ["", f"## {place}", "", first, "", "| key | value | default | meaning |"]
        parts.append("|---|---|---|---|")
        meanings = _meanings(model)
        for name, field in model.model_fields.items():
            if _is_tag(field):
                continue
            cells = (f"`{name}`", _type(field), _default(field), meanings.get(name, ""))
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(parts) + "\n"


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """The docstring under each field, also of base classes, or its description."""
    found = {name: field.description or "" for name, field in model.model_fields.items()}
    for kind in reversed(model.__mro__):
        if not issubclass(kind, BaseModel) or kind is BaseModel:
            continue
        try:
            source = inspect.getsource(kind)
        except OSError:  # made without a class statement
            continue
        (body,) = ast.parse(textwrap.dedent(source)).body
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                assert isinstance(field.target, ast.Name)
                assert isinstance(text.value, ast.Constant)
                lines = inspect.cleandoc(str(text.value.value))
                found[field.target.id] = re.sub(r"\s+", " ", lines)
    return found


def _is_tag(field: FieldInfo) -> bool:
    """True for the tag of an alternative; grid files do not give it."""
    return (
        typing.get_origin(field.annotation) is Literal
        and len(typing.get_args(field.annotation)) == 1
    )


def _type(field: FieldInfo) -> str:
    limits = [_limit(mark) for mark in field.metadata]
    return ", ".join([_named(field.annotation), *filter(None, limits)])


def _limit(mark: Any) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return ", ".join(
        f"{sign} {value}"
        for name, sign in signs.items()
        if (value := getattr(mark, name, None)) is not None and abs(value) < 2**62
    )


def _named(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _named(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_named(each) for each in arguments if each is not type(None))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        inside = list(dict.fromkeys(_named(each) for each in arguments if each is not Ellipsis))
        return f"list of {' or '.join(inside)}"
    if origin is dict:
        return f"mapping to {_named(arguments[1])}"
    if annotation in _NAMES:
        return f"[{_NAMES[annotation]}](#{_anchor(_NAMES[annotation])})"
    if annotation is Any:
        return "any"
    return _TYPE_NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _anchor(title: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return _value(field.get_default(call_default_factory=True))


def _value(value: Any) -> str:
    if value is None or value == "" or (isinstance(value, tuple | dict) and not value):
        return ""
    if isinstance(value, BaseModel):
        given = ", ".join(_members(value))
        return f"`{{{given}}}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple) and isinstance(value[0], BaseModel):
        return ", ".join(map(_value, value))
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`"


def _members(value: BaseModel) -> Iterator[str]:
    for name in value.model_fields_set:
        member = getattr(value, name)
        yield f"{name}: {{}}" if isinstance(member, BaseModel) else f"{name}: {member}"


if __name__ == "__main__":
    import sys

    sys.stdout.write(grid_reference())
