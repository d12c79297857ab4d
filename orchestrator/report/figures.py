"""Figures of a report: differences from a baseline, and critical-difference diagrams."""

import re
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from xsweep.orchestrator.report.report import Ranking, Report
from xsweep.orchestrator.report.significance import mean_and_width
from xsweep.orchestrator.report.table import Column, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"better": "#0072B2", "worse": "#D55E00", "same": "#888888"}
"""Okabe and Ito's blue and vermilion: distinct for colour-blind readers and in grey print."""
MAX_DRAWN = 12
"""Differences are drawn for at most this number of pairs of column and baseline."""
MARKERS = {"better": "^", "worse": "v", "same": "o"}


def save_figures(report: Report, folder: Path, suffix: str = ".pdf") -> list[Path]:
    """One figure per column and baseline, up to `MAX_DRAWN`, and one per ranking.

    Files are named after measure and place, with any suffix that matplotlib supports. The same
    report gives the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in _figures(report):
        path = folder / (_slug(name) + suffix)
        path.write_bytes(_written(figure, suffix.removeprefix(".")))
        paths.append(path)
    return paths


def inline_figures(report: Report) -> list[str]:
    """The same figures as SVG elements for an HTML page."""
    pictures = (_written(figure, "svg").decode() for _, figure in _figures(report))
    return [picture[picture.index("<svg") :] for picture in pictures]


def draw_differences(report: Report, column: Column, baseline: Row) -> "Figure | None":
    """One line per system: its mean difference from the baseline, with a 95% interval over queries.

    Markers and colours show the report's corrected tests; the interval is uncorrected. None if the
    column has no comparison with the baseline.
    """
    from matplotlib.figure import Figure

    found = [
        each for each in report.comparisons if (each.column, each.baseline) == (column, baseline)
    ]
    if not found:
        return None
    entries = report.table.entries
    figure = Figure(figsize=(6.3, 0.6 + 0.24 * len(found)))
    axes = figure.add_subplot()
    axes.axvline(0, color="black", linewidth=0.8)
    for height, each in enumerate(reversed(found)):
        scores = entries[each.row, column].per_query, entries[baseline, column].per_query
        differences = [ours - theirs for ours, theirs in zip(*scores, strict=True)]
        mean, width = mean_and_width(differences, column.weights)
        colour = COLOURS[each.verdict]
        axes.plot([mean - width, mean + width], [height, height], color=colour, linewidth=1.4)
        axes.plot(mean, height, MARKERS[each.verdict], color=colour, markersize=6)
    # without parse_math=False a dollar sign in a name starts a formula
    names = [report.name(each.row) for each in reversed(found)]
    axes.set_yticks(range(len(found)), names, parse_math=False)
    axes.set_ylim(-0.7, len(found) - 0.3)
    axes.set_xlabel(
        f"{column.measure} on {column.place}: difference from {report.name(baseline)}",
        parse_math=False,
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)
    return figure


def draw_ranking(ranking: Ranking) -> "Figure":
    """Critical-difference diagram: levels at their mean ranks, bars over groups without a
    significant difference.
    """
    from matplotlib.figure import Figure

    count = len(ranking.levels)
    left = (count + 1) // 2
    figure = Figure(figsize=(6.3, 1.1 + 0.19 * (left + len(ranking.cliques))))
    axes = figure.add_subplot()
    write = partial(axes.text, fontsize=8, parse_math=False)
    low, high = 1.0, float(count)
    below = -0.35 * len(ranking.cliques)
    for place, (name, mean) in enumerate(zip(ranking.levels, ranking.mean_ranks, strict=True)):
        on_left = place < left
        height = below - 0.6 - (place if on_left else count - 1 - place) * 0.75
        edge, gap, side = (low, -0.05, "right") if on_left else (high, 0.05, "left")
        edge += 3 * gap
        axes.plot([mean, mean, edge], [0, height, height], color="black", linewidth=0.7)
        write(edge + gap, height, f"{name} ({mean:.2f})", ha=side, va="center")
    for number, (first, last) in enumerate(ranking.cliques):
        ends = ranking.mean_ranks[first] - 0.03, ranking.mean_ranks[last] + 0.03
        height = -0.3 - 0.35 * number
        axes.plot(ends, [height, height], color=COLOURS["better"], linewidth=3)
    axes.plot([low, low + ranking.critical], [0.9, 0.9], "|-", color="black", linewidth=1.2)
    label = f"critical difference {ranking.critical:.2f}"
    write(low + ranking.critical / 2, 1.05, label, ha="center", va="bottom")
    axes.hlines(0, low, high, color="black", linewidth=0.9)
    for tick in range(1, count + 1):
        axes.plot([tick, tick], [0, 0.15], color="black", linewidth=0.9)
        write(tick, 0.25, str(tick), ha="center", va="bottom")
    title = (
        f"{ranking.measure}: mean rank of each {ranking.choice} over {ranking.blocks} "
        f"{ranking.over}"
    )
    write((low + high) / 2, 2.3, title, ha="center", fontsize=9)
    axes.axis("off")
    return figure


def _figures(report: Report) -> "Iterator[tuple[str, Figure]]":
    pairs = list(product(report.table.columns, report.baselines))
    for column, baseline in pairs if len(pairs) <= MAX_DRAWN else ():
        if figure := draw_differences(report, column, baseline):
            yield _differences_name(column, baseline), figure
    for ranking in report.rankings:
        yield _ranking_name(ranking), draw_ranking(ranking)


def captions(report: Report) -> dict[str, str]:
    """Captions by a figure's file name without suffix, of all figures that the report may have."""
    found = {
        _slug(_differences_name(column, baseline)): (
            f"{column.measure} on {column.place}: mean differences from {report.name(baseline)} "
            "with 95% intervals over queries, uncorrected; colours show the corrected tests."
        )
        for column, baseline in product(report.table.columns, report.baselines)
    }
    for ranking in report.rankings:
        found[_slug(_ranking_name(ranking))] = (
            f"{ranking.measure}: mean rank of each {ranking.choice} over {ranking.blocks} "
            f"{ranking.over}; a bar joins levels that do not differ significantly (Nemenyi)."
        )
    return found


def _differences_name(column: Column, baseline: Row) -> str:
    return f"{column.measure} {column.place} against {baseline.model}"


def _ranking_name(ranking: Ranking) -> str:
    return f"{ranking.measure} mean ranks {ranking.choice}"


def _slug(name: str) -> str:
    return re.sub("[^0-9A-Za-z@]+", "-", name)


def _written(figure: "Figure", format: str) -> bytes:
    """The file's bytes, without a date and with text as text."""
    import matplotlib as mpl

    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(format)
    out = BytesIO()
    with mpl.rc_context({"svg.hashsalt": "xsweep", "svg.fonttype": "none", "pdf.fonttype": 42}):
        figure.savefig(out, format=format, metadata=undated, bbox_inches="tight")
    return out.getvalue()
