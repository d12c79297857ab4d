"""Checkpoints: all state that the rest of a training depends on, one folder each.

`step-N/` holds `weights.safetensors`, `moments.safetensors` (AdamW's), `best.safetensors` (the
weights with the best validation so far) and `progress.json`, closed by a manifest with checksums.
It holds no pickle and no random state: all randomness is a function of (seed, step).
"""

import json
import logging
import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from xsweep.errors import DataError
from xsweep.evaluator.data.files import atomic_write, is_finished, read_manifest, write_manifest
from xsweep.trainer.distributed import least_over_ranks
from xsweep.trainer.result import writing

log = logging.getLogger(__name__)

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
    """Writes `folder/step-N` atomically and removes all but the last two checkpoints.

    Raises SetupError if the disk is full or refuses; earlier checkpoints are kept.
    """
    path = folder / f"step-{checkpoint.progress['step']}"
    with writing(path), atomic_write(path) as draft:
        draft.mkdir()
        for part in PARTS:
            tensors = {k: tensor.contiguous() for k, tensor in getattr(checkpoint, part).items()}
            save_file(tensors, draft / f"{part}.safetensors")
        (draft / "progress.json").write_text(json.dumps(checkpoint.progress) + "\n")
        write_manifest(draft)
        if path.exists():
            shutil.rmtree(path)
    for old in list_checkpoints([folder])[KEEP:]:
        shutil.rmtree(old)


def list_checkpoints(folders: Iterable[Path]) -> list[Path]:
    """Finished checkpoints in some folders, the furthest first; other folders are passed over."""
    found = [
        (int(step), path)
        for folder in folders
        for path in folder.glob("step-*")
        if (step := path.name.removeprefix("step-")).isdecimal() and is_finished(path)
    ]
    return [path for _, path in sorted(found, key=lambda each: each[0], reverse=True)]


def load_newest(folders: Iterable[Path], most: float = math.inf) -> Checkpoint | None:
    """The furthest checkpoint of at most so many steps whose checksums match; None if none is."""
    for folder in list_checkpoints(folders):
        if int(folder.name.removeprefix("step-")) > most:
            continue
        try:
            read_manifest(folder)
        except DataError:
            # A damaged checkpoint costs the steps since the previous one, not the training.
            continue
        parts = {name: load_file(folder / f"{name}.safetensors") for name in PARTS}
        return Checkpoint(**parts, progress=json.loads((folder / "progress.json").read_text()))
    return None


def load_common(folders: Sequence[Path], device: torch.device) -> Checkpoint | None:
    """The furthest checkpoint that every rank finds intact; None if there is none.

    Where hosts share only an object store, a rank that is killed leaves checkpoints on its own host
    that never reached the store: with steps 5 and 3 there and 4 and 3 elsewhere it is that of 3.
    """
    most = math.inf
    while True:
        found = load_newest(folders, most)
        step = found.progress["step"] if found else 0
        least = least_over_ranks(step, device)
        if least == -least_over_ranks(-step, device):
            return found
        log.warning(
            "the ranks have different checkpoints, this one step %d; taking an earlier one", step
        )
        most = least
