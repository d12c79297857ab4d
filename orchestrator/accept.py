"""Accepting a finished folder: check it against its manifest, read it, write it under the token."""

import json
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from db import jobs
from evaluator.files import checksum
from evaluator.manifest import read_manifest
from orchestrator.store import resolve
from xsweep import DataError


def accept(
    engine: Engine, store: Path, *, job_id: int, token: int, owner: str, folder: str
) -> bool:
    """Make the folder the job's result; False if the attempt is no longer the owner's.

    Raises DataError where the folder differs from its manifest or lacks what a result needs.
    """
    path = resolve(store, folder)
    read_manifest(path)
    return jobs.finish(
        engine,
        job_id=job_id,
        token=token,
        owner=owner,
        folder=folder,
        manifest_sha256=checksum(path / "manifest.json"),
        summary=_read(path / "summary.json") or {},
        provenance=_read(path / "provenance.json") or {},
        scores=_read(path / "per_query.json"),
    )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}): run its job again") from error
