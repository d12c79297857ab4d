"""The report as figures for paper and page: differences from a baseline, one point per system."""

import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.report.comparisons import stratified_mean, subtract
from orchestrator.report.report import Report
from orchestrator.report.table import Column, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"better": "#0072B2", "worse": "#D55E00", "same": "#888888"}
"""Okabe and Ito's blue and vermilion: told apart by colour-blind readers, and on grey paper."""
MARKERS = {"better": "^", "worse": "v", "same": "o"}


def save_figures(report: Report, folder: Path, suffix: str = ".pdf") -> list[Path]:
    """One figure per column and baseline; files are named by measure and place.

    `suffix` is any that matplotlib writes. The same report gives the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in _figures(report):
        path = folder / (re.sub("[^0-9A-Za-z@]+", "-", name) + suffix)
        path.write_bytes(_written(figure, suffix.removeprefix(".")))
        paths.append(path)
    return paths


def inline_figures(report: Report) -> list[str]:
    """The same figures as SVG elements to put into a page."""
    pictures = (_written(figure, "svg").decode() for _, figure in _figures(report))
    return [picture[picture.index("<svg") :] for picture in pictures]


def draw_differences(report: Report, column: Column, baseline: Row) -> "Figure | None":
    """A line per system: its mean difference from the baseline with a 95% interval over queries.

    Marks and colours tell the corrected tests of the report; the interval itself is uncorrected.
    None when the baseline has no result there, or nothing to compare with.
    """
    from matplotlib.figure import Figure
    from scipy.special import stdtrit

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
        differences = subtract(
            entries[each.row, column].per_query, entries[baseline, column].per_query
        )
        mean, error, freedom = stratified_mean(differences)
        reach = error * float(stdtrit(freedom, 0.975)) if error else 0.0
        colour = COLOURS[each.verdict]
        axes.plot([mean - reach, mean + reach], [height, height], color=colour, linewidth=1.4)
        axes.plot(mean, height, MARKERS[each.verdict], color=colour, markersize=6)
    # names are names: a dollar sign in one starts no formula
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


def _figures(report: Report) -> "Iterator[tuple[str, Figure]]":
    for column in report.table.columns:
        for baseline in report.baselines:
            figure = draw_differences(report, column, baseline)
            if figure is not None:
                yield f"{column.measure} {column.place} against {baseline.model}", figure


def _written(figure: "Figure", format: str) -> bytes:
    """The file's bytes, without a date and with text that stays text."""
    import matplotlib as mpl

    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(format)
    out = BytesIO()
    with mpl.rc_context({"svg.hashsalt": "xsweep", "svg.fonttype": "none", "pdf.fonttype": 42}):
        figure.savefig(out, format=format, metadata=undated, bbox_inches="tight")
    return out.getvalue()
