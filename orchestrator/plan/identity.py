"""Identities: the SHA-256 of everything that changes a job's result, and of nothing else.

Specs are pinned to content first: files by checksums, packages by versions.
"""

import hashlib
import json
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from xsweep.errors import ConfigError
from xsweep.evaluator.data.collection import folder_files, folder_sha256
from xsweep.evaluator.data.files import atomic_write, checksum_of, parquet_files, tree_sha256
from xsweep.evaluator.provenance import installed_version
from xsweep.evaluator.specs import HUB, ApidocsSpec, FileSpec, FolderSpec, Location, ModelSpec

_CHECKSUMS = ("md5", "sha256", "version")


def identity_of(kind: str, spec: str, parents: Mapping[str, str]) -> str:
    """The identity of a job, 64 hex digits, from its kind, spec and parents (role to identity).

    `spec` is the canonical JSON of the spec's significant part. Callers leave out parents that
    only save work (token stores).
    """
    start = canonical({"kind": kind, "parents": dict(parents)})
    return hashlib.sha256(f'{start[:-1]},"spec":{spec}}}'.encode()).hexdigest()


def significant(spec: BaseModel) -> dict[str, Any]:
    """The part of a spec that changes a result, as JSON values.

    It has no locations of content that a checksum identifies, no names of collections, and no
    setting that has its default: a new setting whose default is the old behaviour changes no
    identity. Tags of alternatives (`type: bm25`) are kept.
    """
    kept = {}
    for name, field in type(spec).model_fields.items():
        value = getattr(spec, name)
        is_tag = get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
        default = field.get_default(call_default_factory=True)
        is_default = not field.is_required() and value == default
        if is_tag or not (is_default or _is_name_or_location(spec, name, field)):
            kept[name] = _plain(value)
    return kept


def _is_name_or_location(spec: BaseModel, name: str, field: FieldInfo) -> bool:
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
    """The canonical JSON of a value: sorted keys, no spaces, Unicode NFC, 1.0 as 1 and -0.0 as 0.

    `canonical({"b": 1.0, "a": 1e-5})` is `{"a":1e-05,"b":1}`. Raises ConfigError for NaN and
    infinity, TypeError for types that JSON lacks.
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
            raise ConfigError(f"two keys of {sorted(value)} are equal in Unicode NFC")
        return normal
    if isinstance(value, (list, tuple)):
        return [_normal(item) for item in value]
    return value


Spec = TypeVar("Spec", bound=BaseModel)


class ChecksumCache:
    """Pins specs to content; a JSON file keeps the checksums of unchanged files.

    A file counts as unchanged while its path, size and modification time are. `save` writes new
    checksums.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        try:
            self.known: dict[str, str] = json.loads(cache.read_text())
        except (OSError, ValueError):
            self.known = {}
        self._saved = len(self.known)

    def pin(self, spec: Spec) -> Spec:
        """The spec with every missing checksum and version filled in, at any depth.

        Raises SetupError for a package that is not installed, DataError for unreadable files.
        """
        match spec:
            case FileSpec(md5=None, sha256=None):
                if spec.path.startswith(HUB):
                    return spec  # its commit is part of it
                path = Path(spec.path)
                compute = partial(checksum_of, path)
                return _with(spec, sha256=self._sum(parquet_files(path), compute))
            case FolderSpec(sha256=None):
                path = Path(spec.path)
                files = folder_files(path, spec.split)
                compute = partial(folder_sha256, path, spec.split)
                return _with(spec, sha256=self._sum(files, compute))
            case ModelSpec(folder=str() as folder, sha256=None):
                tree = Path(folder)
                parts = [file for file in sorted(tree.rglob("*")) if file.is_file()]
                return _with(spec, sha256=self._sum(parts, partial(tree_sha256, tree)))
            case ModelSpec(package=str() as package, version=None):
                return _with(spec, version=installed_version(package))
            case ApidocsSpec() if not spec.versions:
                from xsweep.evaluator.data import apidocs

                return _with(spec, versions=apidocs.versions())
        names = type(spec).model_fields
        return _with(spec, **{name: self._pin_part(getattr(spec, name)) for name in names})

    def _pin_part(self, part: object) -> object:
        if isinstance(part, BaseModel):
            return self.pin(part)
        if isinstance(part, tuple):
            return tuple(self._pin_part(item) for item in part)
        return part

    def _sum(self, files: Iterable[Path], compute: Callable[[], str]) -> str:
        stats = [(str(file), file.stat()) for file in files if file.exists()]
        key = json.dumps([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
        if key not in self.known:
            self.known[key] = compute()
        return self.known[key]

    def save(self) -> None:
        """Write new checksums atomically."""
        if len(self.known) > self._saved:
            with atomic_write(self.cache) as draft:
                draft.write_text(json.dumps(self.known, indent=0))


def _with(spec: Spec, **values: object) -> Spec:
    return spec.model_copy(update=values)
