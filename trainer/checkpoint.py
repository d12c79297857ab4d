"""Checkpoints: everything that the rest of a training depends on, in one folder for each.

`step-N/` holds `weights.safetensors`, `moments.safetensors` (AdamW's), `best.safetensors` (the
weights with the best validation so far) and `progress.json`, closed by a manifest with
checksums. No pickle. No random state is kept: all chance is a function of (seed, step).

Writing results: what the disk answers, as an error that says what to do.
"""

import errno
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from xsweep.errors import DataError, SetupError
from xsweep.evaluator.data.files import atomic_write, is_finished, read_manifest, write_manifest

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Raises SetupError where writing to `place` fails; finished checkpoints are not touched."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        full = number in FULL or any(f"os error {code}" in str(error) for code in FULL)
        hint = "the disk is full: make room" if full else "see to the disk and its rights"
        raise SetupError(
            f"{place}: cannot be written ({error}); {hint} and run the training again, it goes on "
            "from its last checkpoint"
        ) from error


KEEP = 2


PARTS = ("weights", "moments", "best")


Weights = dict[str, Tensor]


class Checkpoint(NamedTuple):
    """The state after `progress["step"]` steps."""

    weights: Weights
    moments: Weights
    best: Weights
    progress: dict


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes `folder/step-N` so that it appears whole or not at all; the last two stay.

    Raises SetupError where the disk is full or refuses; earlier checkpoints stay as they are.
    """
    path = folder / f"step-{checkpoint.progress['step']}"
    with writing(path), atomic_write(path) as draft:
        _write(draft, checkpoint)
        if path.exists():
            shutil.rmtree(path)
    for old in list_checkpoints([folder])[KEEP:]:
        shutil.rmtree(old)


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    folder.mkdir()
    for part in PARTS:
        tensors = {key: tensor.contiguous() for key, tensor in getattr(checkpoint, part).items()}
        save_file(tensors, folder / f"{part}.safetensors")
    (folder / "progress.json").write_text(json.dumps(checkpoint.progress) + "\n")
    write_manifest(folder)


def list_checkpoints(folders: Iterable[Path]) -> list[Path]:
    """Closed checkpoints below some folders, the furthest first."""
    found = (path for folder in folders for path in folder.glob("step-*") if is_finished(path))
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def load_newest(folders: Iterable[Path]) -> Checkpoint | None:
    """The furthest checkpoint whose checksums hold; None where there is none."""
    for folder in list_checkpoints(folders):
        try:
            read_manifest(folder)
        except DataError:
            # A damaged one costs the steps since the one before, not the training.
            continue
        parts = {name: load_file(folder / f"{name}.safetensors") for name in PARTS}
        return Checkpoint(**parts, progress=json.loads((folder / "progress.json").read_text()))
    return None
