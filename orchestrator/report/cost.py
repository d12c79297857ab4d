"""What the systems took beside what they reach: hours of training and evaluation, lost ones too."""

from collections.abc import Iterable
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

from xsweep.orchestrator.formatting import duration
from xsweep.orchestrator.report.effects import signed
from xsweep.orchestrator.report.report import Report, Section
from xsweep.orchestrator.report.table import Column, Row, row_of

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from xsweep.db.results import JobCost


def with_cost(report: Report, engine: "Engine") -> Report:
    """The report with a section of its runs' costs."""
    from xsweep.db.results import load_costs

    section = cost_section(report, load_costs(engine, report.sweep))
    return replace(report, sections=(*report.sections, section))


def cost_section(report: Report, costs: Iterable["JobCost"]) -> Section:
    """Per row: hours of one training and of its evaluations, their sum over seeds, and quality.

    Hours are GPU hours where the jobs reserve GPUs (a fraction counts as that fraction), else CPU
    core hours. The gain is the mean difference from the first baseline over the columns of the
    first measure that both have, per hour of one training and its evaluations.
    """
    costs = list(costs)
    gpu = any(job.gpus for job in costs if job.kind == "train")
    chosen = {(row_of(cell), cell.labels.get("seed")) for cell in report.cells}
    by_row: dict[Row, list[JobCost]] = {row: [] for row in report.table.rows}
    for job in costs:
        row = _row_of(job)
        if row and (row, job.labels.get("seed")) in chosen:
            by_row[row].append(job)
    measure = report.table.columns[0].measure
    columns = [column for column in report.table.columns if column.measure == measure]
    lines: list[tuple[str, ...]] = []
    total_h = lost_h = 0.0
    for row, jobs in by_row.items():
        trained = [job for job in jobs if job.kind == "train"]
        if not trained:
            continue
        seeds = len({job.labels["seed"] for job in trained})
        train_h = sum(_hours(job, gpu) for job in trained) / seeds
        evaluate_h = sum(_hours(job, gpu) for job in jobs if job.kind == "evaluate") / seeds
        lost = sum(_hours(job, gpu, lost=True) for job in jobs)
        total_h += (train_h + evaluate_h) * seeds
        lost_h += lost
        gain = _gain(report, row, columns)
        lines.append(
            (
                report.name(row),
                str(seeds),
                duration(fmean(job.seconds for job in trained)),
                f"{train_h:.3g}",
                f"{evaluate_h:.3g}",
                f"{lost:.3g}",
                "–" if gain is None else signed(report, gain),
                "–" if gain is None or not train_h else signed(report, gain / train_h),
            )
        )
    unit = "GPU hours" if gpu else "core hours"
    return Section(
        f"Cost, and {measure} for it",
        (
            *("system", "seeds", "wall time of a training", f"{unit} of a training"),
            *("of its evaluations", "lost in all"),
            *("gain", "gain per hour of training"),
        ),
        lines,
        f"{unit} as reserved by the jobs, from start to end of an attempt: means over seeds, and "
        "what failed, expired and repeated attempts took (lost). Together "
        f"{total_h:.3g} {unit}, and {lost_h:.3g} lost. Gain: mean difference from "
        f"{report.name(report.baselines[0]) if report.baselines else 'a baseline (none)'}.",
    )


def _row_of(job: "JobCost") -> Row | None:
    labels = job.labels
    if "backbone" not in labels:
        return None
    return Row("run", labels["backbone"], labels["objective"], labels["teacher"])


def _hours(job: "JobCost", gpu: bool, lost: bool = False) -> float:
    return (job.lost_s if lost else job.seconds) * (job.gpus if gpu else job.cpus) / 3600


def _gain(report: Report, row: Row, columns: list[Column]) -> float | None:
    """The mean difference from the first baseline over the columns that both have."""
    entries = report.table.entries
    if not report.baselines or row == report.baselines[0]:
        return None
    pairs = [
        (entries[row, column].mean, entries[report.baselines[0], column].mean)
        for column in columns
        if all(
            (each, column) in entries and entries[each, column].means
            for each in (row, report.baselines[0])
        )
    ]
    return fmean(ours - theirs for ours, theirs in pairs) if pairs else None
