"""What tests read off a finished training."""

import hashlib
import json
from pathlib import Path

ENGINES = {
    "plain": {"engine": "plain"},
    "zero-0": {"engine": "deepspeed", "zero_stage": 0},
    "zero-1": {"engine": "deepspeed", "zero_stage": 1},
    "zero-2": {"engine": "deepspeed", "zero_stage": 2},
}


def curve(out: Path, figure: str = "loss") -> list[float]:
    """One figure of every step that has it."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [record[figure] for record in map(json.loads, lines) if figure in record]


def digest(out: Path) -> str:
    """Of the exported weights."""
    return hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest()
