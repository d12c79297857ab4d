"""Scores of an unfinished job, saved every half minute, so that a killed one goes on from there.

Batches follow from the pairs' lengths and the budget alone, so the scores of a job that was resumed
are those of one that was not, to the last bit. What was saved counts only for equal pairs, models
and settings: their digest is in the file.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

from evaluator.files import atomic_write

SAVE_EVERY_S = 30.0
FOLDER = "partial"


class Done(NamedTuple):
    """How far a scoring is."""

    rows: int
    """Pairs that are scored, in the order of scoring."""
    batch_tokens: int
    """The budget now; out of memory halves it."""
    scores: np.ndarray
    """float32[pairs], in the order of the pairs; only the first `rows` of the order count."""


Keep = Callable[[Done], None]


def read_partial(folders: Sequence[Path], name: str, digest: str) -> Done | None:
    """The furthest state that some attempt saved under this digest; None where there is none."""
    found = []
    for folder in folders:
        try:
            with np.load(folder / FOLDER / f"{name}.npz", allow_pickle=False) as saved:
                if str(saved["digest"]) == digest:
                    found.append(
                        Done(int(saved["rows"]), int(saved["batch_tokens"]), saved["scores"])
                    )
        except (
            OSError,
            ValueError,
            KeyError,
            EOFError,
            BadZipFile,
        ):  # none there, or not one of ours
            continue
    return max(found, key=lambda done: done.rows, default=None)


def keeper(folder: Path, name: str, digest: str, every_s: float = SAVE_EVERY_S) -> Keep:
    """A function that saves states to `folder`, at most every `every_s` seconds."""
    path = folder / FOLDER / f"{name}.npz"
    last_s = time.monotonic()

    def keep(done: Done) -> None:
        nonlocal last_s
        if time.monotonic() - last_s < every_s:
            return
        with atomic_write(path) as draft, draft.open("wb") as file:
            np.savez(file, digest=digest, **done._asdict())
        last_s = time.monotonic()

    return keep


def digest_of(settings: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> str:
    """One digest of settings and of the token ids of all pairs."""
    digest = hashlib.sha256(settings.encode())
    for query, document in pairs:
        digest.update(f"\n{len(query)} {len(document)} ".encode())
        digest.update(np.asarray(query, dtype=np.int32).tobytes())
        digest.update(np.asarray(document, dtype=np.int32).tobytes())
    return digest.hexdigest()
