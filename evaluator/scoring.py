"""Scores of many (query, document) pairs by one cross-encoder, longest first under a budget.

Pairs are sorted by their true length and cut into batches of at most `batch_tokens` slots. Where
`varlen.encoders` knows the family they are scored end to end without padding, else padded to
the longest of their batch; an out-of-memory error shows at once, as the longest come first.

Scoring on several devices at once: pairs are dealt out by their tokens.

Scores of an unfinished job, saved every half minute, so that a killed one goes on from there.

Batches follow from the pairs' lengths and the budget alone, so the scores of a job that was resumed
are those of one that was not, to the last bit. What was saved counts only for equal pairs, models
and settings: their digest is in the file.
"""

import copy
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from transformers import PreTrainedModel

from xsweep.errors import ConfigError
from xsweep.evaluator.data.files import atomic_write
from xsweep.evaluator.device import bf16_units, is_out_of_memory, release_freed_memory
from xsweep.evaluator.pairs import PairEncoder, PairIds
from xsweep.evaluator.specs import BATCH_TOKENS, Layout, Precision
from xsweep.evaluator.varlen.attention import Packing, pack
from xsweep.evaluator.varlen.encoders import unpadded_scorer

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


TokenPair = tuple[np.ndarray, np.ndarray]


CPU_TOKENS = 2048
"""Of one pass without padding on a CPU: its activations stay in the cache. With 4,096 MiniLM-L6
scores 31 instead of 36 pairs a second (AMD Zen 3)."""


GPU_TOKENS = 65_536
"""What a GPU takes where the budget was left at its default: 4,096 tokens of MiniLM-L6 are 0.1
TFLOP, which it has done before the host has launched the pass's kernels."""


class ScoredPairs(NamedTuple):
    """Raw logits in the order of the pairs, and what computing them took."""

    scores: np.ndarray
    """float32[pairs]"""
    padding_waste: float
    """Share of the computed token slots that were padding, 0 to 1."""
    seconds: float


def score_pairs(
    model: PreTrainedModel,
    encoder: PairEncoder,
    pairs: Sequence[TokenPair],
    *,
    query_tokens: int,
    document_tokens: int,
    batch_tokens: int = BATCH_TOKENS,
    precision: Precision = "fp32",
    layout: Layout = "auto",
    device: torch.device | str | None = None,
    progress: Callable[[int], object] | None = None,
    resume: Done | None = None,
    keep: Keep | None = None,
) -> ScoredPairs:
    """Raw scores of pairs of token ids (without special tokens).

    The model is moved to `device` (default: where it is) and runs without dropout; its weights are
    left alone, bf16 computes with copies or by autocast. `progress` hears how many pairs are done,
    after each batch; what it raises ends the scoring. `keep` gets the state at the same times, and
    `resume` is such a state of an earlier call with equal arguments: the scores are the same to
    the last bit. After an out-of-memory error the budget is halved. Raises ConfigError for the
    layout `unpadded` where the model's family has none.
    """
    started = time.perf_counter()
    device = torch.device(device) if device is not None else model.device
    dtype, _ = choose_precision(precision, device)
    batch_tokens = budget_on(device, batch_tokens)
    lengths = encoder.lengths(
        np.array([len(query) for query, _ in pairs], dtype=np.int64),
        np.array([len(document) for _, document in pairs], dtype=np.int64),
        query_tokens,
        document_tokens,
    )
    order = np.argsort(-lengths, kind="stable")
    scores = np.empty(len(pairs), dtype=np.float32)
    slots = done = skipped = 0
    if resume:
        done = skipped = resume.rows
        scores[:], batch_tokens = resume.scores, resume.batch_tokens
    was_training = model.training
    model.to(device).eval()  # type: ignore[arg-type]
    try:
        with torch.inference_mode():
            way = _way(model, encoder, dtype, layout)

            def prepare(start: int) -> tuple[np.ndarray, Any]:
                rows = next(way.cut(lengths, order[start:], batch_tokens))
                each = (pairs[int(row)] for row in rows)
                return rows, way.assemble(
                    [encoder.encode(*pair, query_tokens, document_tokens) for pair in each]
                )

            following = None
            while done < len(order):
                rows, inputs = following or prepare(done)
                following = None
                try:
                    logits, used = way.score(inputs)
                    if done + len(rows) < len(order):
                        following = prepare(done + len(rows))  # while a GPU computes
                    scores[rows] = logits.float().cpu().numpy()
                except (RuntimeError, MemoryError) as error:
                    if len(rows) == 1 or not is_out_of_memory(error):
                        raise
                    batch_tokens, following = batch_tokens // 2, None
                    # What the failed pass holds lives as long as the error's traceback.
                    error.__traceback__ = None
                    release_freed_memory()
                    continue
                slots += used
                done += len(rows)
                if keep:
                    keep(Done(done, batch_tokens, scores))
                if progress:
                    progress(done)
    finally:
        model.train(was_training)
    waste = 1 - int(lengths[order[skipped:]].sum()) / slots if slots else 0.0
    return ScoredPairs(scores, waste, time.perf_counter() - started)


class ScoringMode(NamedTuple):
    """How pairs are scored, in batches of one kind."""

    cut: Callable[[np.ndarray, np.ndarray, int], Iterator[np.ndarray]]
    """Batches of rows, of the pairs' lengths, the order of rows and a budget of tokens."""
    assemble: Callable[[Sequence[PairIds]], Any]
    """What a pass of encoded pairs needs, on its way to the model's device."""
    score: Callable[[Any], tuple[torch.Tensor, int]]
    """Logits of what was assembled, and the token slots that were computed."""


def _way(
    model: PreTrainedModel, encoder: PairEncoder, dtype: torch.dtype, layout: Layout
) -> ScoringMode:
    device = model.device

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        # A GPU copies from pinned memory while it computes, and the host does not wait.
        return (tensor.pin_memory() if device.type == "cuda" else tensor).to(
            device, non_blocking=True
        )

    def collate(pairs: Sequence[PairIds]) -> dict[str, torch.Tensor]:
        return {name: moved(tensor) for name, tensor in encoder.collate(pairs).items()}

    def padded(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = model(**batch).logits[:, 0]
        return logits, batch["input_ids"].numel()

    # On a GPU padding is still the default: there the unpadded way has not been measured.
    if layout == "padded" or (layout == "auto" and device.type != "cpu"):
        return ScoringMode(batches, collate, padded)
    scorer = unpadded_scorer(model, dtype)
    if scorer is None:
        if layout == "unpadded":
            raise ConfigError(
                f"{model.config.model_type} models are scored padded only: leave layout out"
            )
        return ScoringMode(batches, collate, padded)

    def unpadded(packing: Packing) -> tuple[torch.Tensor, int]:
        return scorer(packing), packing.ids_T.numel()

    def cut(lengths: np.ndarray, order: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
        limit = CPU_TOKENS if device.type == "cpu" else batch_tokens
        return batches_without_padding(lengths, order, min(limit, batch_tokens))

    return ScoringMode(cut, lambda pairs: pack(pairs).each(moved), unpadded)


def budget_on(device: torch.device, batch_tokens: int) -> int:
    """Token slots of one pass: as asked, or `GPU_TOKENS` on a GPU where the default was left."""
    is_left = batch_tokens == BATCH_TOKENS
    return GPU_TOKENS if is_left and device.type == "cuda" else batch_tokens


def batches(lengths: np.ndarray, order: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Cuts rows, ordered longest first, into batches of at most `batch_tokens` padded slots.

    A batch ends where a token costs least: further rows share the call's fixed cost, taken for a
    64th of a full batch, but are shorter and padded more. A row that is longer than the budget
    makes a batch of its own.

    With 640 slots a call costs 10: of the lengths 100, 100, 40 the first two make a batch, since
    (200 + 10) / 200 is less than (100 + 10) / 100 and than (300 + 10) / 240.
    """
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        tokens = np.cumsum(lengths[order[start : start + max(1, batch_tokens // longest)]])
        slots = longest * np.arange(1, len(tokens) + 1)
        rows = 1 + int(np.argmin((slots + batch_tokens / 64) / tokens))
        yield order[start : start + rows]
        start += rows


def batches_without_padding(
    lengths: np.ndarray, order: np.ndarray, batch_tokens: int
) -> Iterator[np.ndarray]:
    """Cuts rows into batches of at most `batch_tokens` tokens, or of one longer row."""
    start = 0
    while start < len(order):
        ends = np.cumsum(lengths[order[start : start + batch_tokens]])
        rows = max(1, int(np.searchsorted(ends, batch_tokens, side="right")))
        yield order[start : start + rows]
        start += rows


def choose_precision(
    precision: Precision, device: torch.device | str = "cpu"
) -> tuple[torch.dtype, str]:
    """The dtype to compute in and the reason; `auto` is bf16 where the hardware multiplies it."""
    if precision != "auto":
        return (torch.bfloat16 if precision == "bf16" else torch.float32), "as asked"
    if torch.device(device).type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, f"{torch.cuda.get_device_name(device)} multiplies bf16"
        return torch.float32, f"{torch.cuda.get_device_name(device)} has no bf16 units"
    if units := bf16_units():
        return torch.bfloat16, f"the CPU has {' and '.join(units)}"
    return torch.float32, "the CPU has neither avx512_bf16 nor amx_bf16"


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
