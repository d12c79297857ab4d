"""Scores of (query, document) pairs by one model, longest first within a token budget.

Pairs are sorted by their true length and cut into batches of at most `batch_tokens` slots. If
`varlen.encoders` knows the model's family, they are scored end to end without padding, else padded
to the longest of their batch. The longest come first, so a lack of memory shows at once. Several
devices share the pairs by their tokens.

An unfinished job saves its scores every half minute. Batches follow from the pairs' lengths and
the budget alone, so a resumed job's scores equal those of an uninterrupted one to the last bit.
"""

import copy
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from torch.nn.attention import sdpa_kernel
from transformers import PreTrainedModel

from xsweep.errors import DivergenceError
from xsweep.evaluator.data.files import atomic_write
from xsweep.evaluator.device import choose_precision, is_out_of_memory, release_freed_memory
from xsweep.evaluator.models.causal_reranker import PromptEncoder, build_prompt_scorer
from xsweep.evaluator.pairs import PairEncoder, PairIds
from xsweep.evaluator.specs import BATCH_TOKENS, Layout, ScoringSpec
from xsweep.evaluator.varlen.attention import KERNELS, Packing, pack
from xsweep.evaluator.varlen.encoders import build_scorer, runs_unpadded
from xsweep.evaluator.varlen.layers import Kernels

TokenPair = tuple[np.ndarray, np.ndarray]
"""Token ids of a query and of a document, without special tokens."""
Pairs = Sequence[TokenPair] | Sequence[tuple[str, str]]
"""Pairs of token ids for a `PairEncoder`, of texts for a `PromptEncoder`."""

CPU_TOKENS = 2048
"""Budget of one pass without padding on a CPU: its activations stay in the cache. With 4,096
MiniLM-L6 scores 31 instead of 36 pairs a second (AMD Zen 3)."""
GPU_TOKENS = 65_536
"""Budget of a GPU if the setting has its default: 4,096 tokens of MiniLM-L6 are 0.1
TFLOP, which a GPU finishes before the host has launched the pass's kernels."""
SAVE_EVERY_S = 30.0


class ScoredPairs(NamedTuple):
    """Raw logits in the order of the pairs, and the cost of computing them."""

    scores: np.ndarray
    """float32[pairs]"""
    padding_waste: float
    """Share of the computed token slots that were padding, 0 to 1."""
    seconds: float


class ScoringState(NamedTuple):
    """Progress of a scoring."""

    rows: int
    """Scored pairs, in the order of scoring."""
    batch_tokens: int
    """The current budget, which a lack of memory halves."""
    scores: np.ndarray
    """float32[pairs] in the order of the pairs; only the first `rows` of the scoring order are
    valid."""


@dataclass
class PartialScores:
    """Saved scores of an unfinished job, valid only for equal pairs, models and settings.

    Each file holds a digest of these; files of anything else are ignored.
    """

    folders: Sequence[Path]
    """The folder where states are saved, then those of earlier attempts."""
    name: str
    description: str
    """All that determines the scores, except the pairs."""
    _digest: str = field(default="", init=False)
    _saved_s: float = field(default_factory=time.monotonic, init=False)

    def read(self, pairs: Pairs) -> ScoringState | None:
        """The furthest state that some attempt saved for these pairs; None if there is none."""
        self._digest = digest_of(self.description, pairs)
        found = []
        for folder in self.folders:
            try:
                with np.load(folder / f"{self.name}.npz", allow_pickle=False) as saved:
                    if str(saved["digest"]) == self._digest:
                        rows, batch_tokens = int(saved["rows"]), int(saved["batch_tokens"])
                        found.append(ScoringState(rows, batch_tokens, saved["scores"]))
            except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # missing or damaged
                continue
        return max(found, key=lambda state: state.rows, default=None)

    def save(self, state: ScoringState) -> None:
        """Saves a state for the pairs of `read`, at most every `SAVE_EVERY_S`."""
        if time.monotonic() - self._saved_s < SAVE_EVERY_S:
            return
        path = self.folders[0] / f"{self.name}.npz"
        with atomic_write(path) as draft, draft.open("wb") as file:
            np.savez(file, digest=self._digest, **state._asdict())
        self._saved_s = time.monotonic()


def digest_of(description: str, pairs: Pairs) -> str:
    """One digest of a description and of the token ids, or texts, of all pairs."""
    digest = hashlib.sha256(description.encode())
    for query, document in pairs:
        digest.update(f"\n{len(query)} {len(document)} ".encode())
        for side in (query, document):
            ids = side.encode() if isinstance(side, str) else np.asarray(side, np.int32).tobytes()
            digest.update(ids)
    return digest.hexdigest()


def score_pairs(
    model: PreTrainedModel,
    encoder: PairEncoder | PromptEncoder,
    pairs: Pairs,
    settings: ScoringSpec,
    *,
    device: torch.device | str | None = None,
    progress: Callable[[int], object] | None = None,
    partial: PartialScores | None = None,
) -> ScoredPairs:
    """Raw scores of pairs; `settings` gives lengths, budget, precision and layout.

    The model is moved to `device` (default: its own) and runs without dropout; its weights do not
    change, bf16 computes with copies or by autocast. `progress` gets the number of scored pairs
    after each batch; an exception from it ends the scoring. After an out-of-memory error the
    budget is halved. Raises ConfigError for the layout `unpadded` with a model that runs padded
    only, DivergenceError after the first batch with a score that is NaN or infinite.
    """
    started = time.perf_counter()
    device = torch.device(device) if device is not None else model.device
    dtype, _ = choose_precision(settings.precision, device)
    cuts = settings.query_tokens, settings.document_tokens
    lengths = encoder.lengths_of(pairs, *cuts)  # type: ignore[arg-type]
    order = np.argsort(-lengths, kind="stable")
    state = partial.read(pairs) if partial else None
    if state is None:
        scores = np.empty(len(pairs), dtype=np.float32)
        state = ScoringState(0, budget_on(device, settings.batch_tokens), scores)
    resumed, batch_tokens, scores = state
    done, slots = resumed, 0
    was_training = model.training
    model.to(device).eval()
    try:
        with torch.inference_mode():
            mode = _mode(model, encoder, dtype, settings.layout)

            def prepare(start: int) -> tuple[np.ndarray, Any]:
                rows = next(mode.cut(lengths, order[start:], batch_tokens))
                each = [pairs[row] for row in rows.tolist()]
                return rows, mode.assemble(encoder.encode_all(each, *cuts))

            following = None
            while done < len(order):
                rows, inputs = following or prepare(done)
                following = None
                try:
                    logits, used = mode.score(inputs)
                    if done + len(rows) < len(order):
                        following = prepare(done + len(rows))  # while a GPU computes
                    scores[rows] = logits.float().cpu().numpy()
                except (RuntimeError, MemoryError) as error:
                    if len(rows) == 1 or not is_out_of_memory(error):
                        raise
                    batch_tokens, following = batch_tokens // 2, None
                    # The traceback keeps the failed pass's tensors alive.
                    error.__traceback__ = None
                    release_freed_memory()
                    continue
                require_finite(scores[rows], "pairs", model, rows)
                slots += used
                done += len(rows)
                if partial:
                    partial.save(ScoringState(done, batch_tokens, scores))
                if progress:
                    progress(done)
    finally:
        model.train(was_training)
    waste = 1 - int(lengths[order[resumed:]].sum()) / slots if slots else 0.0
    return ScoredPairs(scores, waste, time.perf_counter() - started)


def require_finite(
    values_N: np.ndarray, noun: str, model: PreTrainedModel, places_N: np.ndarray
) -> None:
    """Raise DivergenceError if a model's values for a batch are NaN or infinite.

    `noun` and int64 `places_N` say in the message which inputs the batch has.
    """
    wrong = np.flatnonzero(~np.isfinite(values_N).reshape(len(values_N), -1).all(axis=1))
    if len(wrong):
        weights = sum(not bool(torch.isfinite(each).all()) for each in model.parameters())
        raise DivergenceError(
            f"{model.name_or_path or 'the model'} gives no finite value to {len(wrong)} of "
            f"{len(values_N)} {noun} of a batch, the first is number {places_N[wrong].min()}: "
            + (f"{weights} of its weights are not finite" if weights else "its sums overflow")
        )


class ScoringMode(NamedTuple):
    """The steps of scoring pairs with or without padding."""

    cut: Callable[[np.ndarray, np.ndarray, int], Iterator[np.ndarray]]
    """Cuts rows into batches, given the pairs' lengths, the order of rows and a token budget."""
    assemble: Callable[[Sequence[PairIds]], Any]
    """Makes a pass's inputs from encoded pairs and sends them to the model's device."""
    score: Callable[[Any], tuple[torch.Tensor, int]]
    """Gives the logits of assembled inputs, and the token slots that were computed."""


def _mode(
    model: PreTrainedModel,
    encoder: PairEncoder | PromptEncoder,
    dtype: torch.dtype,
    layout: Layout,
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
        bf16 = torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
        with bf16, sdpa_kernel(KERNELS):
            logits = model(**batch).logits[:, 0]
        return logits, batch["input_ids"].numel()

    if isinstance(encoder, PromptEncoder):
        ask = build_prompt_scorer(model, encoder)
        return ScoringMode(
            batches, collate, lambda inputs: (ask(inputs), inputs["input_ids"].numel())
        )
    if not runs_unpadded(model, layout):
        return ScoringMode(batches, collate, padded)
    scorer = build_scorer(model, Kernels(dtype))

    def unpadded(packing: Packing) -> tuple[torch.Tensor, int]:
        return scorer(packing), packing.ids_T.numel()

    def cut(lengths: np.ndarray, order: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
        limit = CPU_TOKENS if device.type == "cpu" else batch_tokens
        return batches_without_padding(lengths, order, min(limit, batch_tokens))

    return ScoringMode(cut, lambda pairs: pack(pairs).each(moved), unpadded)


def budget_on(device: torch.device, batch_tokens: int) -> int:
    """Token slots of one pass: the setting, or `GPU_TOKENS` for its default on a GPU."""
    is_default = batch_tokens == BATCH_TOKENS
    return GPU_TOKENS if is_default and device.type == "cuda" else batch_tokens


def batches(lengths: np.ndarray, order: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Cuts rows, ordered longest first, into batches of at most `batch_tokens` padded slots.

    A batch ends where the cost per token is lowest: further rows share the call's fixed cost, taken
    to be a 64th of a full batch, but are shorter and padded more. A row that is longer than the
    budget is a batch of its own.

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


def visible_devices() -> list[torch.device]:
    """All GPUs that this process may use, else the CPU."""
    gpus = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return gpus or [torch.device("cpu")]


def score_on(
    devices: Sequence[torch.device],
    model: PreTrainedModel,
    encoder: PairEncoder | PromptEncoder,
    pairs: Pairs,
    settings: ScoringSpec,
    progress: Callable[[int], object] | None = None,
    partial: PartialScores | None = None,
) -> ScoredPairs:
    """`score_pairs` over all devices, with a copy of the model on each.

    Pairs are shared by cost: linear layers grow with a pair's tokens, attention with their square.
    Padding is the mean over pairs and time the maximum. An exception on one device is raised after
    all have ended.
    """
    devices = devices[: max(1, len(pairs))]
    if len(devices) == 1:
        return score_pairs(
            model, encoder, pairs, settings, device=devices[0], progress=progress, partial=partial
        )
    lengths = encoder.lengths_of(pairs, settings.query_tokens, settings.document_tokens)  # type: ignore[arg-type]
    # A layer multiplies a token's states with weights 24 H² times, with other tokens' 4 H L times.
    hidden = model.config.get_text_config().hidden_size
    shares = share_out(lengths * (6 * hidden + lengths), len(devices))
    done, lock = [0] * len(devices), Lock()

    def score(place: int) -> ScoredPairs:
        def report(count: int) -> None:
            with lock:
                done[place] = count
                if progress:
                    progress(sum(done))

        part = f"{place}-of-{len(devices)}"
        return score_pairs(
            copy.deepcopy(model),
            encoder,
            [pairs[row] for row in shares[place]],
            settings,
            device=devices[place],
            progress=report,
            partial=replace(partial, name=f"{partial.name}-{part}") if partial else None,
        )

    with ThreadPoolExecutor(len(devices)) as pool:
        results = list(pool.map(score, range(len(devices))))
    scores = np.empty(len(pairs), dtype=np.float32)
    for rows, result in zip(shares, results, strict=True):
        scores[rows] = result.scores
    counts = [len(rows) for rows in shares]
    waste = float(np.average([result.padding_waste for result in results], weights=counts))
    return ScoredPairs(scores, waste, max(result.seconds for result in results))


def share_out(lengths: np.ndarray, shares: int) -> list[np.ndarray]:
    """Rows of each share, int64, so that their sums of lengths are nearly equal.

    The longest first, each to the share with the least so far: lengths 5, 4, 3, 3 in two shares
    give 5 + 3 and 4 + 3.
    """
    sums = np.zeros(shares, dtype=np.int64)
    owners = np.empty(len(lengths), dtype=np.int64)
    for row in np.argsort(-lengths, kind="stable"):
        owners[row] = sums.argmin()
        sums[owners[row]] += lengths[row]
    return [np.flatnonzero(owners == share) for share in range(shares)]
