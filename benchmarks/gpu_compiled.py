"""A padded batch of full length by `torch.compile`, on a GPU with CUDA graphs, too."""

import argparse
import time
from functools import partial
from typing import Any

import torch
from gpu_models import QUERY_TOKENS, World
from gpu_rates import clock
from gpu_report import Figures, Report

from xsweep.evaluator.scoring import BATCH_TOKENS, budget_on

WAYS: dict[str, dict[str, Any]] = {
    "eager": {},
    "compiled": {"dynamic": False},
    "CUDA graphs": {"dynamic": False, "mode": "reduce-overhead"},
}
TOKENS = 512


def measure(report: Report, options: argparse.Namespace, world: World) -> None:
    """A row for every shape and way."""
    for shape in options.shapes:
        for way in WAYS if options.device.type == "cuda" else ("eager", "compiled"):
            row = f"{shape}, {TOKENS}, {way}"
            report.add("compile", row, partial(score, world, shape, way, options))


def score(world: World, shape: str, way: str, options: argparse.Namespace) -> Figures:
    """Pairs per second of one batch, repeated, and how far its scores are from eager ones.

    The batch has the size that scoring gives it; since its shape never changes, this is the most
    that a compiler can gain.
    """
    device, bf16 = options.device, options.precision == "bf16"
    model, encoder = world.model(shape)
    model.to(device).eval()
    pairs = world.pairs["512"]
    count = budget_on(device, BATCH_TOKENS) // TOKENS
    some = (pairs.ids[n % len(pairs.ids)] for n in range(count))
    batch = {
        name: tensor.to(device)
        for name, tensor in encoder.collate(
            [encoder.encode(*pair, QUERY_TOKENS, pairs.document_tokens) for pair in some]
        ).items()
    }

    def scores(run: Any) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, bf16):
            return run(**batch).logits[:, 0].float().cpu()

    torch.compiler.reset()
    expected = scores(model)
    run = torch.compile(model, **WAYS[way]) if WAYS[way] else model
    began_s = time.perf_counter()
    difference = (scores(run) - expected).abs().max()
    first_s = time.perf_counter() - began_s
    scores(run)  # CUDA graphs are recorded at the second call
    done, started = 0, clock(device)
    while done == 0 or clock(device) - started < options.seconds:
        scores(run)
        done += count
    return {
        "pairs_per_s": round(done / (clock(device) - started), 2),
        "first_call_wall_s": round(first_s, 2),
        "largest_difference": float(difference),
    }
