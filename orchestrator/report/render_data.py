"""The report as data: JSON with everything, CSV with one line per place and baseline."""

import json
import math
from typing import Any

from xsweep.orchestrator.report.caption import Style, caption
from xsweep.orchestrator.report.report import Report
from xsweep.orchestrator.report.table import Column, Row

STYLE = Style(best="rank 1", second="rank 2", better="better", worse="worse")


SCHEMA = "xsweep.report/1"


def render_json(report: Report) -> str:
    """A document of schema `xsweep.report/1`; fractions at full precision, what is unknown null.

    `places` has one object per row and column: the row (`name`, `system`, `model`, `objective`,
    `teacher`), the column (`measure`, and `collection` or `suite`), `mean`, `std` over seeds,
    `rank` (1, 2), `queries`, `planned_seeds`, `seeds` ({seed, mean}), `unfinished` (state -> seeds)
    and `comparisons` ({baseline, difference, effect_size_d, p, p_corrected, verdict}). Beside it
    stand `sweep`, `rehearsal` (true, or left out), `by`, `best`, `pairs`, `where`, `test`,
    `correction`, `alpha`, the number of `comparisons`, `baselines`, `caption` (sentences) and
    `sections` ({title, heads, lines, note}).
    """
    document = {
        "schema": SCHEMA,
        "sweep": report.sweep,
        **({"rehearsal": True} if report.rehearsal else {}),
        "by": report.by,
        "best": report.best,
        "pairs": report.pairs,
        "where": {label: list(values) for label, values in report.where.items()},
        "test": report.test,
        "correction": report.correction,
        "alpha": report.alpha,
        "comparisons": len(report.comparisons),
        "baselines": [_row(row) for row in report.baselines],
        "caption": caption(report, STYLE),
        "places": [
            _row(row) | place | {"comparisons": compared}
            for row, place, compared in _places(report)
        ],
        "sections": [section._asdict() for section in report.sections],
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def render_csv(report: Report) -> str:
    """Tidy lines: a place without comparison has one line, else one for each baseline."""
    import pandas as pd

    lines = []
    for row, place, compared in _places(report):
        flat = ({"rehearsal": True} if report.rehearsal else {}) | _row(row) | place
        flat["seeds"] = " ".join(f"{each['seed']}:{each['mean']!r}" for each in place["seeds"])
        flat["unfinished"] = " ".join(f"{n} {state}" for state, n in place["unfinished"].items())
        lines += [flat | each for each in compared or [{}]]
    # as objects: an integer stays one in a column with gaps
    return pd.DataFrame(lines, dtype=object).to_csv(index=False, lineterminator="\n")


def _row(row: Row) -> dict[str, Any]:
    return {"name": row.name, **row._asdict()}


def _places(report: Report) -> list[tuple[Row, dict[str, Any], list[dict[str, Any]]]]:
    return [
        (row, _place(report, row, column), _compared(report, row, column))
        for column in report.table.columns
        for row in report.table.rows
        if (row, column) in report.table.entries
    ]


def _place(report: Report, row: Row, column: Column) -> dict[str, Any]:
    entry = report.table.entries[row, column]
    return {
        "measure": column.measure,
        report.by: column.place,
        "mean": _finite(entry.mean),
        "std": _finite(entry.std),
        "rank": report.ranks.get((row, column)),
        "queries": sum(map(len, entry.per_query)) or None,
        "planned_seeds": entry.planned,
        "seeds": [{"seed": seed, "mean": mean} for seed, mean in entry.means.items()],
        "unfinished": dict(entry.unfinished),
    }


def _compared(report: Report, row: Row, column: Column) -> list[dict[str, Any]]:
    return [
        {
            "baseline": each.baseline.name,
            "difference": each.difference,
            "effect_size_d": _finite(each.effect),
            "p": _finite(each.p),
            "p_corrected": _finite(each.p_corrected),
            "verdict": each.verdict,
        }
        for each in report.compared.get((row, column), [])
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
