"""Time, memory and the machine's rate of matrix products, as the benchmarks of scoring use them."""

import gc
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import linear
from transformers import PreTrainedModel

from xsweep.evaluator.device import release_freed_memory
from xsweep.evaluator.varlen.layers import prepare


class Timing(NamedTuple):
    """One call of a way of scoring."""

    wall_s: float
    cpu_s: float
    memory_bytes: int
    scores: np.ndarray
    padding_waste: float


def timed(score: Callable[[], tuple[np.ndarray, float]]) -> Timing:
    """Calls a contender once."""
    gc.collect()
    release_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak of resident memory anew
    before = memory_bytes("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    scores, waste = score()
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    return Timing(wall_s, cpu_s, memory_bytes("VmHWM") - before, scores, waste)


def cut_text(tokenizer: Any, text: str, tokens: int) -> str:
    """A text's first tokens, so that ways of truncating pairs make no difference."""
    settings = {"add_special_tokens": False, "truncation": True, "max_length": tokens}
    places = tokenizer(text, return_offsets_mapping=True, **settings)["offset_mapping"]
    return text[: places[-1][1]] if places else ""


def memory_bytes(key: str) -> int:
    """Of this process: `VmRSS` is resident, `VmHWM` its peak, `VmSize` mapped."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def product_flops(model: PreTrainedModel, lengths: np.ndarray, *, first_token_only: bool) -> float:
    """Multiply-adds times two of all pairs without padding: linear layers and attention.

    Of a layer with a window counts what its tokens see. DeBERTa's products with relative positions
    are not counted. With `first_token_only` the last layer has keys and values of all tokens, and
    the rest of one.
    """
    hidden, inner, per_layer = _shape(model)
    per_token = 2 * (4 * hidden * hidden + per_layer * hidden * inner)
    flops = np.zeros(len(lengths))
    seen = list(_seen_tokens(model, lengths))
    for row, seen_by_all in enumerate(seen):
        if first_token_only and row == len(seen) - 1:
            flops += lengths * 4 * hidden * hidden + per_token + 4.0 * lengths * hidden
        else:
            flops += lengths * per_token + 4.0 * seen_by_all * hidden
    return float(flops.sum())


def _seen_tokens(model: PreTrainedModel, lengths: np.ndarray) -> Iterator[np.ndarray]:
    """How many tokens all tokens of a pair see, for every layer and pair."""
    config = model.config
    if config.model_type != "modernbert":
        yield from repeat(lengths.astype(float) ** 2, config.num_hidden_layers)
        return
    reach = config.local_attention // 2
    # Each place sees `reach` to both sides, but for what the two ends cut off.
    outside = np.maximum(lengths - 1.0 - reach, 0)
    near = lengths.astype(float) ** 2 - outside * (outside + 1)
    for kind in config.layer_types:
        yield near if kind == "sliding_attention" else lengths.astype(float) ** 2


def peak_flops(model: PreTrainedModel, dtype: torch.dtype, tokens: int = 2048) -> float:
    """Best rate of bare products of the model's own shapes per CPU second.

    The faster of `F.linear` and of weights that were laid out beforehand.
    """
    best = 0.0
    with torch.inference_mode():
        for rows, columns in product_shapes(model):
            states, weights = (
                torch.randn(tokens, rows, dtype=dtype),
                torch.randn(columns, rows, dtype=dtype),
            )
            products = (partial(linear, weight=weights), prepare(weights, None, dtype))
            for product in products * 30:
                started = time.process_time()
                product(states)
                spent_s = time.process_time() - started
                best = max(best, 2 * tokens * rows * columns / spent_s)
    return best


def product_shapes(model: PreTrainedModel) -> list[tuple[int, int]]:
    """Rows and columns of the weights that a model multiplies with."""
    hidden, inner, _ = _shape(model)
    return [(hidden, hidden), (hidden, inner), (inner, hidden)]


def _shape(model: PreTrainedModel) -> tuple[int, int, int]:
    """Width, inner width, and how many products of these two a layer has."""
    config = model.config
    gated = config.model_type == "modernbert"
    return config.hidden_size, config.intermediate_size, 3 if gated else 2
