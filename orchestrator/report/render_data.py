"""The report as data: JSON with everything, CSV with one line per row, column and baseline."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from xsweep.orchestrator.report.caption import Style, caption, notes
from xsweep.orchestrator.report.report import PLAIN, Layout, Report
from xsweep.orchestrator.report.table import Column, Row

STYLE = Style(best="rank 1", second="rank 2", better="better", worse="worse")
SCHEMA = "xsweep.report/1"


def render_json(report: Report, layout: Layout = PLAIN) -> str:
    """A document of schema `xsweep.report/1`, see docs/reports.md; null for unknown values."""
    options = report.options
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "sweep": report.sweep,
        **({"rehearsal": True} if report.rehearsal else {}),
        "by": options.by,
        "best": options.best,
        "pairs": options.pairs,
        "where": {label: list(values) for label, values in options.where.items()},
        "test": options.test,
        "correction": options.correction,
        "alpha": options.alpha,
        "comparisons": len(report.comparisons),
        "baselines": [row_fields(row) for row in report.baselines],
        "caption": caption(report, STYLE),
        "notes": notes(report),
        "places": [
            row_fields(row) | place | {"comparisons": compared}
            for row, place, compared in _places(report)
        ],
        "sections": [section._asdict() for section in report.sections],
    }
    return dump_json(document)


def render_csv(report: Report, layout: Layout = PLAIN) -> str:
    """Tidy lines: one per row, column and baseline, or one without comparisons."""
    lines = []
    for row, place, compared in _places(report):
        flat = ({"rehearsal": True} if report.rehearsal else {}) | row_fields(row) | place
        flat["seeds"] = " ".join(
            f"{each['seed']}:{each['mean']!r}"
            for each in place["seeds"]
            if each["seed"] is not None
        )
        flat["unfinished"] = " ".join(f"{n} {state}" for state, n in place["unfinished"].items())
        lines += [flat | each for each in compared or [{}]]
    return dump_csv(lines)


def dump_csv(lines: Sequence[Mapping[str, Any]]) -> str:
    """CSV with a head; a key that a line lacks is an empty field."""
    import pandas as pd

    # dtype object: integers stay integers in a column with gaps
    return pd.DataFrame(lines, dtype=object).to_csv(index=False, lineterminator="\n")


def dump_json(document: dict[str, Any]) -> str:
    """Indented JSON; raises ValueError for NaN and infinity."""
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def row_fields(row: Row) -> dict[str, Any]:
    """A row's name and fields."""
    return {"name": row.name, **row._asdict()}


def finite(value: float) -> float | None:
    """None for NaN and infinity, which JSON does not have."""
    return value if math.isfinite(value) else None


def _places(report: Report) -> list[tuple[Row, dict[str, Any], list[dict[str, Any]]]]:
    return [
        (row, _place(report, row, column), _comparisons(report, row, column))
        for column in report.table.columns
        for row in report.table.rows
        if (row, column) in report.table.entries
    ]


def _place(report: Report, row: Row, column: Column) -> dict[str, Any]:
    entry = report.table.entries[row, column]
    return {
        "measure": column.measure,
        report.options.by: column.place,
        "mean": finite(entry.mean),
        "std": finite(entry.std),
        "rank": report.ranks.get((row, column)),
        "queries": sum(map(len, entry.per_query)) or None,
        "planned_seeds": entry.planned,
        "seeds": [{"seed": seed, "mean": mean} for seed, mean in entry.means.items()],
        "unfinished": dict(entry.unfinished),
    }


def _comparisons(report: Report, row: Row, column: Column) -> list[dict[str, Any]]:
    return [
        {
            "baseline": each.baseline.name,
            "difference": each.difference,
            "effect_size_d": finite(each.effect),
            "p": finite(each.p),
            "p_corrected": finite(each.p_corrected),
            "verdict": each.verdict,
        }
        for each in report.compared.get((row, column), [])
    ]
