"""Pins specs to content: files get checksums, packages versions, before identities are taken."""

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from evaluator.files import atomic_write, checksum, tree_sha256
from evaluator.layouts import folder_files, folder_sha256
from evaluator.provenance import installed_version
from evaluator.specs import ApidocsSpec, FileSpec, FolderSpec, ModelSpec

Spec = TypeVar("Spec", bound=BaseModel)


class Pins:
    """Pins specs, remembering checksums of unchanged files in a JSON file.

    A file counts as unchanged while its path, size and modification time are. Call `save` at the
    end to keep what was computed.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        try:
            self.known: dict[str, str] = json.loads(cache.read_text())
        except (OSError, ValueError):
            self.known = {}
        self._saved = len(self.known)

    def pin(self, spec: Spec) -> Spec:
        """The spec with every checksum and version that it leaves open, at any depth.

        Raises SetupError for a package that is not installed, DataError for unreadable files.
        """
        match spec:
            case FileSpec(md5=None, sha256=None):
                path = Path(spec.path)
                return _with(spec, sha256=self._sum([path], partial(checksum, path)))
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
                from evaluator import apidocs

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
        """Write what was computed; a reader sees the old file or the new one."""
        if len(self.known) > self._saved:
            with atomic_write(self.cache) as draft:
                draft.write_text(json.dumps(self.known, indent=0))


def _with(spec: Spec, **values: object) -> Spec:
    return spec.model_copy(update=values)
