"""Cost of the systems beside their quality: hours of training and evaluation, lost ones too."""

from collections.abc import Iterable, Sequence
from statistics import fmean

from xsweep.db.results import JobCost
from xsweep.orchestrator.formatting import duration
from xsweep.orchestrator.report.report import Report, Section
from xsweep.orchestrator.report.table import Column, Row, row_of


def cost_section(report: Report, costs: Iterable[JobCost]) -> Section:
    """Hours of one training and of its evaluations per row, lost hours, and gain in quality.

    Hours are GPU hours if the trainings reserve GPUs (a fraction counts as that fraction), else
    CPU core hours. The gain is the mean difference from the first baseline over the columns of
    the first measure that both have.
    """
    costs = list(costs)
    gpu = any(job.gpus for job in costs if job.kind == "train")

    def hours(job: JobCost, seconds: float) -> float:
        return seconds * (job.gpus if gpu else job.cpus) / 3600

    chosen = {(row_of(cell.labels), cell.labels.get("seed")) for cell in report.cells}
    by_row: dict[Row, list[JobCost]] = {row: [] for row in report.table.rows}
    for job in costs:
        if "backbone" in job.labels:
            row = row_of(job.labels)
            if (row, job.labels.get("seed")) in chosen:
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
        train_h = sum(hours(job, job.seconds) for job in trained) / seeds
        evaluate_h = sum(hours(job, job.seconds) for job in jobs if job.kind == "evaluate") / seeds
        row_lost_h = sum(hours(job, job.lost_s) for job in jobs)
        total_h += (train_h + evaluate_h) * seeds
        lost_h += row_lost_h
        gain = _gain(report, row, columns)
        lines.append(
            (
                report.name(row),
                str(seeds),
                duration(fmean(job.seconds for job in trained)),
                f"{train_h:.3g}",
                f"{evaluate_h:.3g}",
                f"{row_lost_h:.3g}",
                "–" if gain is None else report.signed(gain),
                "–" if gain is None or not train_h else report.signed(gain / train_h),
            )
        )
    unit = "GPU hours" if gpu else "core hours"
    baseline = report.name(report.baselines[0]) if report.baselines else "a baseline (none given)"
    return Section(
        f"Cost and gain in {measure}",
        (
            *("system", "seeds", "wall time of a training", f"{unit} of a training"),
            *("of its evaluations", "lost in all", "gain", "gain per hour of training"),
        ),
        lines,
        f"{unit[0].upper()}{unit[1:]} reserved by the jobs, from start to end of each attempt: "
        "means over seeds; lost: failed, expired and repeated attempts. In total "
        f"{total_h:.3g} {unit}, and {lost_h:.3g} lost. Gain: mean difference from {baseline}.",
    )


def _gain(report: Report, row: Row, columns: Sequence[Column]) -> float | None:
    """Mean difference from the first baseline over the columns that both have, None without."""
    if not report.baselines or row == report.baselines[0]:
        return None
    results = (
        (report.table.result(row, column), report.table.result(report.baselines[0], column))
        for column in columns
    )
    gains = [ours.mean - theirs.mean for ours, theirs in results if ours and theirs]
    return fmean(gains) if gains else None
