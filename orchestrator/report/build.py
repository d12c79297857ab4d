"""From a sweep's evaluations to a report: which of them, in which columns, against whom."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evaluator.suites import SUITES
from orchestrator.report.comparisons import compare, find_baselines
from orchestrator.report.report import Report
from orchestrator.report.table import build_table, natural
from xsweep import ConfigError, did_you_mean

if TYPE_CHECKING:
    from db.results import Cell

OUT_OF_DOMAIN = ("lotte-search", "robust04")
"""The suites whose collections together are the study's OOD mean."""


def build_report(
    cells: Sequence["Cell"],
    *,
    sweep: str,
    measures: Sequence[str] = ("nDCG@10",),
    by: str = "collection",
    baselines: Sequence[str] = ("first_stage",),
    alpha: float = 0.05,
    correction: str = "holm",
    test: str = "t",
    digits: int = 3,
    percent: bool = False,
    where: Mapping[str, Sequence[str]] | None = None,
    best: str = "column",
    pairs: bool = False,
) -> Report:
    """The report of evaluations in whatever order they come.

    `where` is a choice among them, see `select`; the rest of the options are `render`'s.

    Raises ConfigError for what the cells cannot answer, naming what they could.
    """
    if by not in ("collection", "suite"):
        raise ConfigError(f"unknown grouping {by!r}: columns are made by collection or suite")
    if best not in ("column", "block"):
        raise ConfigError(f"best of each {best!r}: best and second are found per column or block")
    if not 1 <= digits <= 10:
        raise ConfigError(f"{digits} digits: give 1 to 10")
    kept = select(sorted(cells, key=lambda cell: cell.identity), where or {})
    collections = {cell.labels["collection"] for cell in kept}
    table = build_table(kept, measures, complete_suites(collections) if by == "suite" else None)
    rows = find_baselines(table, baselines)
    return Report(
        sweep=sweep,
        cells=tuple(kept),
        table=table,
        baselines=rows,
        comparisons=compare(
            table, rows, alpha=alpha, correction=correction, test=test, pairs=pairs
        ),
        alpha=alpha,
        correction=correction,
        test=test,
        digits=digits,
        percent=percent,
        by=by,
        best=best,
        pairs=pairs,
        where={label: tuple(values) for label, values in (where or {}).items()},
    )


def select(cells: Sequence["Cell"], where: Mapping[str, Sequence[str]]) -> list["Cell"]:
    """The cells that pass every condition (label -> accepted values, compared as text).

    First stages and teachers stay whatever the conditions on runs are: only `collection` and
    `system` concern them. Raises ConfigError for a label or value that no cell has.
    """
    for label, values in where.items():
        concerned = [cell.labels.get(label) for cell in cells if _concerns(label, cell)]
        known = sorted({str(value) for value in concerned if value is not None}, key=natural)
        if not known:
            labels = sorted({label for cell in cells for label in cell.labels})
            raise ConfigError(
                f"no evaluation has a label {label!r}: use one of {', '.join(labels)}"
            )
        for value in values:
            if value not in known:
                hint = did_you_mean(value, known)
                raise ConfigError(
                    f"no evaluation has {label} {value!r}"
                    + (f"; {hint}" if hint else ".")
                    + f" There are: {', '.join(known)}"
                )
    return [
        cell
        for cell in cells
        if all(
            str(cell.labels.get(label)) in values
            for label, values in where.items()
            if _concerns(label, cell)
        )
    ]


def _concerns(label: str, cell: "Cell") -> bool:
    return cell.labels["system"] == "run" or label in ("collection", "system")


def complete_suites(collections: set[str]) -> dict[str, tuple[str, ...]]:
    """The named suites of which the sweep has every collection, with the names it uses.

    A part of a suite is no suite: its mean would be compared with the whole one's elsewhere.
    """
    suites = dict(SUITES)
    suites["ood"] = {name: id for part in OUT_OF_DOMAIN for name, id in SUITES[part].items()}
    used = {
        suite: tuple(({name, id} & collections) for name, id in members.items())
        for suite, members in suites.items()
    }
    return {
        suite: tuple(sorted(set().union(*names))) for suite, names in used.items() if all(names)
    }
