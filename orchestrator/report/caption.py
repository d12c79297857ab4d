"""The sentences of a report, made from what was really done and found.

They are plain text with the signs ± ▲ ▼ < in them; a format escapes them as it must.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.report.comparisons import Comparison
from orchestrator.report.facts import (
    describe_candidates,
    describe_lengths,
    describe_queries,
    describe_recall,
    describe_selection,
)
from orchestrator.report.report import Report
from orchestrator.report.table import count_states

TESTS = {"t": "paired t-test", "randomization": "paired randomization test"}
CORRECTIONS = {
    "holm": "after Holm's correction",
    "bonferroni": "after Bonferroni's correction",
    "bh": "after Benjamini and Hochberg's correction of the false discovery rate",
    "none": "without any correction",
}
DETAILED_UP_TO = 4
"""Conclusions give figures for so many pairs of column and baseline, else counts of columns."""
REHEARSAL = (
    "A rehearsal: tiny random models on small generated data. These figures say that every job "
    "ran, and nothing about any model."
)
VERDICTS = {"better": "better", "worse": "worse", "same": "not told apart"}


class Style(NamedTuple):
    """How a format writes the marks, as its caption explains them."""

    best: str
    second: str
    better: str
    worse: str


class Conclusion(NamedTuple):
    """What the tests against one baseline say; `found` has the systems' names with figures.

    Over few columns there is one for each, its figures sorted by verdict: {"better": ((name,
    "+0.046", "p = 0.002", "d = 0.26"), ...), ...}. Over many there is one for each measure, which
    counts columns: {"MiniLM-L6 infonce": (("better 14", "worse 2", "not told apart 6"),)}.
    """

    heading: str
    found: dict[str, tuple[tuple[str, ...], ...]]


def title(report: Report) -> str:
    """`quickstart: nDCG@10 and RR@10 on apidocs/test`."""
    measures = list(dict.fromkeys(column.measure for column in report.table.columns))
    places = list(dict.fromkeys(column.place for column in report.table.columns))
    kind = "suite" if any(len(column.collections) > 1 for column in report.table.columns) else ""
    where = places[0] if len(places) == 1 else f"{len(places)} {kind or 'collection'}s"
    mark = "REHEARSAL, " if report.rehearsal else ""
    return f"{mark}{report.sweep}: {listed(measures)} on {where}"


def caption(report: Report, style: Style) -> list[str]:
    """What a reader must know to read the table, one paragraph per subject."""
    return [
        paragraph
        for paragraph in (
            REHEARSAL if report.rehearsal else "",
            _what(report),
            _spread(report),
            _ranks(report, style),
            _test(report, style),
            _missing(report),
        )
        if paragraph
    ]


def conclusions(report: Report) -> list[Conclusion]:
    """Against every baseline: who is better, who is worse, and who is not told apart."""
    groups: dict[str, list[Comparison]] = {}
    for each in report.comparisons:
        if each.within_block:
            continue
        where = f" on {each.column.place}" if detailed(report) else f", number of {report.by}s"
        heading = f"{each.column.measure}{where}, against {report.name(each.baseline)}"
        groups.setdefault(heading, []).append(each)
    describe = _with_figures if detailed(report) else _with_counts
    return [Conclusion(heading, describe(report, group)) for heading, group in groups.items()]


def detailed(report: Report) -> bool:
    """Whether the columns are few enough to speak of each."""
    return len(report.table.columns) * len(report.baselines) <= DETAILED_UP_TO


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _what(report: Report) -> str:
    unit = "percent" if report.percent else "fractions of 1"
    parts = [f"Means over queries, in {unit}."]
    if any(len(column.collections) > 1 for column in report.table.columns):
        parts.append("A suite's value is the unweighted mean of its collections.")
    elif report.by == "suite":
        parts.append("No suite is whole in this sweep, so its collections stand alone.")
    parts += describe_queries(report.cells)
    parts += describe_candidates(report.cells)
    parts += describe_recall(report.cells)
    parts += describe_lengths(report.cells)
    parts += _teachers(report)
    parts += describe_selection(report.cells)
    if report.where:
        chosen = [f"{key} {' or '.join(values)}" for key, values in sorted(report.where.items())]
        parts.append(f"Only {listed(chosen)}.")
    return " ".join(parts)


def _teachers(report: Report) -> list[str]:
    if report.teachers_shown:
        return []
    taught: dict[str, list[str]] = {}
    for row in report.table.rows:
        if row.system == "run" and row.objective not in taught.setdefault(row.teacher, []):
            taught[row.teacher].append(row.objective)
    return (
        [f"Teachers: {', '.join(f'{t} of {listed(o)}' for t, o in taught.items())}."]
        if taught
        else []
    )


def _spread(report: Report) -> str:
    seeds = sorted({cell.labels["seed"] for cell in report.cells if "seed" in cell.labels})
    if not seeds:
        return ""
    named = ", ".join(map(str, seeds))
    if any(len(entry.means) > 1 for entry in report.table.entries.values()):
        return (
            f"Runs are means over the seeds {named}; ± is the sample standard deviation (n − 1) "
            "over seeds, not over queries."
        )
    return (
        f"Runs have one accepted seed each ({named}): no spread is shown, and the tests cannot "
        "know how much seeds vary."
    )


def _ranks(report: Report, style: Style) -> str:
    among = "a column" if report.best == "column" else "each backbone's rows in a column"
    return (
        f"Best of {among} {style.best}, second {style.second}, on the values as printed; "
        "ties share the mark."
    )


def _test(report: Report, style: Style) -> str:
    if not report.comparisons:
        return "No significance is shown: no system shares a column with a finished baseline."
    letters = [f" [{letter}]" if letter else "" for letter in map(report.letter, report.baselines)]
    against = listed(
        [report.name(row) + x for row, x in zip(report.baselines, letters, strict=True)]
    )
    suites = (
        " For a suite the variances of its collections' mean differences add up, with "
        "Satterthwaite's degrees of freedom."
        if report.test == "t"
        and any(len(column.collections) > 1 for column in report.table.columns)
        else ""
    )
    marks = []
    if any(not each.within_block for each in report.comparisons):
        marks.append(
            f"{style.better} and {style.worse}: significantly better and worse than {against}"
        )
    if any(each.within_block for each in report.comparisons):
        numbers = "; after z, numbers from 27 on" if _beyond_z(report) else ""
        marks.append(
            "letters after a value: significantly better than the systems of the same backbone "
            f"that have these letters in brackets{numbers}"
        )
    said = "; ".join(marks)
    return (
        f"{said[0].upper()}{said[1:]}, by a two-sided {TESTS[report.test]} on per-query scores "
        f"averaged over seeds, p < {report.alpha:g} {CORRECTIONS[report.correction]} over the "
        f"table's {_count(len(report.comparisons), 'comparison')}.{suites}"
    )


def _beyond_z(report: Report) -> bool:
    return any(letter.isdigit() for letter in report.block_letters.values())


def _missing(report: Report) -> str:
    pending = [cell for cell in report.cells if cell.state != "done"]
    entries = report.table.entries
    sentences = []
    if pending:
        of = _count(len(report.cells), "evaluation")
        sentences.append(f"Missing: {len(pending)} of {of} ({count_states(pending)}).")
    if any(entry.means and entry.unfinished for entry in entries.values()):
        sentences.append("n/m: so far n of m seeds.")
    if len(entries) < len(report.table.rows) * len(report.table.columns):
        sentences.append("–: not part of the sweep.")
    return " ".join(sentences)


def _with_figures(
    report: Report, comparisons: Sequence[Comparison]
) -> dict[str, tuple[tuple[str, ...], ...]]:
    return {
        words: tuple(
            (
                report.name(each.row),
                f"{'+' if each.difference >= 0 else '−'}{report.number(abs(each.difference))}",
                "p < 0.001" if each.p_corrected < 0.001 else f"p = {each.p_corrected:.3f}",
                f"d = {each.effect:.2f}".replace("-", "−"),
            )
            for each in comparisons
            if each.verdict == verdict
        )
        for verdict, words in VERDICTS.items()
    }


def _with_counts(
    report: Report, comparisons: Sequence[Comparison]
) -> dict[str, tuple[tuple[str, ...], ...]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for each in comparisons:
        counts[report.name(each.row)][each.verdict] += 1
    return {
        name: (tuple(f"{words} {found[verdict]}" for verdict, words in VERDICTS.items()),)
        for name, found in counts.items()
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
