"""Accepting finished folders: check them against their manifests, write them under the tokens."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Engine

from db import jobs
from evaluator.files import checksum
from orchestrator.remote import fetch_results
from orchestrator.store import resolve
from xsweep import DataError


class Finished(NamedTuple):
    """An attempt that says it is done, and where."""

    job_id: int
    token: int
    folder: str


def accept_all(
    engine: Engine, store: Path, finished: Sequence[Finished], *, owner: str
) -> list[bool | DataError]:
    """Make each folder the result of its job, all of them in one transaction.

    In their order: True; False where the attempt is no longer the owner's; a DataError where the
    folder differs from its manifest or lacks what a result needs.
    """
    try:
        results = [_result(store, each) for each in finished]
        held = jobs.finish_all(engine, results, owner=owner)
    except DataError as error:
        if len(finished) == 1:
            return [error]
        # a bad one must not hold up the good ones
        return [accept_all(engine, store, [each], owner=owner)[0] for each in finished]
    return [(each.job_id, each.token) in held for each in finished]


def _result(store: Path, finished: Finished) -> jobs.NewResult:
    resolve(store, finished.folder)
    path = fetch_results(store, finished.folder)
    return jobs.NewResult(
        **finished._asdict(),
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
