"""A training's curves from its `metrics.jsonl`, as SVG that needs no script and no library."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

FIGURES = {
    "loss": "loss",
    "validation": "validation",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "pairs_per_s": "pairs per second",
}
"""Which figures are drawn, in this order, and what they are called."""
POINTS = 300
"""So many are told apart on a screen; longer curves are shown as means of neighbours."""
WIDTH, HEIGHT = 560, 190
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 28, 26


class Curve(NamedTuple):
    """One figure over training steps, without what is no finite number."""

    name: str
    steps: list[float]
    values: list[float]


def read_curves(folder: Path) -> list[Curve]:
    """The curves of an attempt's folder; none where it has no `metrics.jsonl` yet."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    # a line that is being written may be there in half
    records = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    curves = []
    for key, name in FIGURES.items():
        points = [(each["step"], each[key]) for each in records if _is_finite(each.get(key))]
        if points:
            steps, values = zip(*_thinned(points), strict=True)
            curves.append(Curve(name, list(steps), list(values)))
    return curves


def draw(curve: Curve) -> Markup:
    """The curve as an SVG element with its range at the axes; single values are dots."""
    first, last = min(curve.steps), max(curve.steps)
    low, high = min(curve.values), max(curve.values)
    wide, tall = (last - first) or 1.0, (high - low) or 1.0
    points = [
        (
            LEFT + (step - first) / wide * (WIDTH - LEFT - RIGHT),
            TOP + (high - value) / tall * (HEIGHT - TOP - BOTTOM),
        )
        for step, value in zip(curve.steps, curve.values, strict=True)
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{curve.name} over steps">',
        f'<text class="title" x="{LEFT}" y="17">{curve.name}, last {curve.values[-1]:.4g}</text>',
        f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>',
        f'<text class="end" x="{LEFT - 6}" y="{TOP + 5}">{high:.3g}</text>',
        f'<text class="end" x="{LEFT - 6}" y="{HEIGHT - BOTTOM}">{low:.3g}</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 8}">step {first:.0f}</text>',
        f'<text class="end" x="{WIDTH - RIGHT}" y="{HEIGHT - 8}">{last:.0f}</text>',
        f'<polyline class="curve" points="{path}"/>',
        dots if len(points) <= 30 else "",
        "</svg>",
    ]
    return Markup("".join(parts))  # noqa: S704  (numbers and names of ours)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    size = math.ceil(len(points) / POINTS)
    pieces = [points[start : start + size] for start in range(0, len(points), size)]
    return [(piece[-1][0], sum(value for _, value in piece) / len(piece)) for piece in pieces]
