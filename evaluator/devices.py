"""Scoring on several devices at once: pairs are dealt out by their tokens."""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from evaluator.scoring import ScoredPairs, TokenPair, score_pairs

Settings = Callable[[int, Sequence[TokenPair]], dict[str, Any]]
"""Further arguments of `score_pairs` for one device's place and pairs."""


def visible_devices() -> list[torch.device]:
    """All GPUs that this process may use, else the CPU."""
    gpus = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return gpus or [torch.device("cpu")]


def score_on(
    devices: Sequence[torch.device],
    model: PreTrainedModel,
    pairs: Sequence[TokenPair],
    settings: Settings,
    progress: Callable[[int], object] | None = None,
    **common: Any,
) -> ScoredPairs:
    """`score_pairs` over all devices, a copy of the model on each; waste and time are theirs.

    One device gets all pairs as they are. What a device raises is raised once all have ended.
    """
    if len(devices) == 1:
        (device,) = devices
        return score_pairs(
            model, pairs=pairs, device=device, progress=progress, **common, **settings(0, pairs)
        )
    lengths = np.array([len(query) + len(document) for query, document in pairs], dtype=np.int64)
    hands = deal(lengths, len(devices))
    done, lock = [0] * len(devices), Lock()

    def score(place: int) -> ScoredPairs:
        mine = [pairs[row] for row in hands[place]]

        def heard(count: int) -> None:
            with lock:
                done[place] = count
                if progress:
                    progress(sum(done))

        replica = copy.deepcopy(model)
        device = devices[place]
        further = settings(place, mine)
        return score_pairs(replica, pairs=mine, device=device, progress=heard, **common, **further)

    with ThreadPoolExecutor(len(devices)) as pool:
        results = list(pool.map(score, range(len(devices))))
    scores = np.empty(len(pairs), dtype=np.float32)
    for rows, result in zip(hands, results, strict=True):
        scores[rows] = result.scores
    shares = [len(rows) for rows in hands]
    waste = float(np.average([result.padding_waste for result in results], weights=shares))
    return ScoredPairs(scores, waste, max(result.seconds for result in results))


def deal(lengths: np.ndarray, hands: int) -> list[np.ndarray]:
    """Rows for each hand, int64, so that their sums of lengths are nearly equal.

    The longest first, each to the hand with the least so far: lengths 5, 4, 3, 3 to two hands give
    5 + 3 and 4 + 3.
    """
    sums = np.zeros(hands, dtype=np.int64)
    owners = np.empty(len(lengths), dtype=np.int64)
    for row in np.argsort(-lengths, kind="stable"):
        owners[row] = sums.argmin()
        sums[owners[row]] += lengths[row]
    return [np.flatnonzero(owners == hand) for hand in range(hands)]
