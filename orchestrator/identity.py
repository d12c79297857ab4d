"""A job's identity: the SHA-256 of everything that changes its result, and of nothing else."""

import hashlib
import json
import math
import unicodedata
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from evaluator.specs import Location
from xsweep import ConfigError

_CHECKSUMS = ("md5", "sha256", "version")


def identity(kind: str, spec: BaseModel, parents: Mapping[str, str]) -> str:
    """64 hex digits for a job of this kind, spec and parents (role to identity).

    Parents that only save work (token stores) are for the caller to leave out. Raises ConfigError
    for numbers that are not finite.
    """
    return identity_of(kind, canonical(significant(spec)), parents)


def identity_of(kind: str, spec: str, parents: Mapping[str, str]) -> str:
    """The same from the canonical JSON of the spec's significant part, where that is known."""
    start = canonical({"kind": kind, "parents": dict(parents)})
    return hashlib.sha256(f'{start[:-1]},"spec":{spec}}}'.encode()).hexdigest()


def significant(spec: BaseModel) -> dict[str, Any]:
    """The part of a spec that changes a result, as JSON values.

    Left out: locations of what a checksum identifies, names of collections, and every setting that
    has its default, so that a new setting with its old behaviour as default changes no identity.
    Alternatives keep the field that tells them apart (`type: bm25`).
    """
    kept = {}
    for name, field in type(spec).model_fields.items():
        value = getattr(spec, name)
        is_tag = get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
        if is_tag or not (_is_default(field, value) or _only_names(spec, name, field)):
            kept[name] = _plain(value)
    return kept


def _is_default(field: FieldInfo, value: object) -> bool:
    return not field.is_required() and value == field.get_default(call_default_factory=True)


def _only_names(spec: BaseModel, name: str, field: FieldInfo) -> bool:
    """Whether a field says where something is or what we call it, not what it is."""
    if any(mark is Location or isinstance(mark, Location) for mark in field.metadata):
        checksums = [getattr(spec, other) for other in _CHECKSUMS if hasattr(spec, other)]
        return not checksums or any(checksums)
    return name == "name" and hasattr(spec, "source")


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return significant(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, Unicode NFC, 1.0 as 1 and -0.0 as 0.

    `canonical({"b": 1.0, "a": 1e-5})` is `{"a":1e-05,"b":1}`. Raises ConfigError for NaN and
    infinity, TypeError for what JSON does not have.
    """
    return json.dumps(
        _normal(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def _normal(value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"{value} is not a finite number: it cannot be part of an identity")
        return int(value) if value.is_integer() else value
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    if isinstance(value, Mapping):
        normal = {_normal(key): _normal(item) for key, item in value.items()}
        if len(normal) < len(value):
            raise ConfigError(f"two keys of {sorted(value)} are the same letters in Unicode")
        return normal
    if isinstance(value, (list, tuple)):
        return [_normal(item) for item in value]
    return value
