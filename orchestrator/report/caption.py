"""The sentences of a report, made from what was really done and found.

They are plain text with the signs ± ▲ ▼ < in them; a format escapes them as it must.

What the stored results say about their own making: queries, candidates, selected checkpoints.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from xsweep.orchestrator.report.report import Report
from xsweep.orchestrator.report.significance import Comparison
from xsweep.orchestrator.report.table import count_states, natural

if TYPE_CHECKING:
    from xsweep.db.results import Cell


LISTED_UP_TO = 6
"""So many collections are named with their queries, more are only counted."""


def describe_queries(cells: Iterable["Cell"]) -> list[str]:
    """How many queries each collection has, and how many of them have no results and count 0."""
    queries: dict[str, int] = {}
    empty: dict[str, int] = {}
    for cell in cells:
        if cell.state == "done":
            collection = cell.labels["collection"]
            queries[collection] = len(cell.query_ids)
            without = cell.summary.get("queries_without_results", 0)
            empty[collection] = max(without, empty.get(collection, 0))
    names = sorted(queries, key=natural)
    if len(names) > LISTED_UP_TO:
        fewest, most = min(queries.values()), max(queries.values())
        sentences = [f"{len(names)} collections of {fewest} to {most} queries."]
    else:
        sentences = [f"Queries: {', '.join(f'{queries[name]} of {name}' for name in names)}."]
    without = [f"{empty[name]} of {name}" for name in names if empty[name]]
    if without:
        sentences.append(f"Without any result, counted 0: {', '.join(without)}.")
    return sentences


def describe_candidates(cells: Iterable["Cell"]) -> list[str]:
    """Which first stage was re-ranked, with its settings and program, to which depth."""
    found = defaultdict(set)
    for cell in cells:
        if cell.state == "done":
            stage = cell.labels["first_stage"]
            if details := _details(cell.parents_summary["candidates"].provenance):
                stage += f" ({', '.join(details)})"
            found[f"{stage}, top {cell.labels['depth']}"].add(cell.labels["collection"])
    return _sentences("Candidates", found)


def describe_recall(cells: Iterable["Cell"]) -> list[str]:
    """What the first stage found of the relevant documents: what re-ranking cannot go beyond."""
    found: dict[str, tuple[str, float]] = {}
    for cell in cells:
        if cell.state == "done" and "candidates" in cell.parents_summary:
            for name, value in cell.parents_summary["candidates"].summary.get("recall", {}).items():
                found[cell.labels["collection"]] = (name, value)
    if not found:
        return []
    names = sorted(found, key=natural)
    if len(names) > LISTED_UP_TO:
        values = [value for _, value in found.values()]
        low, high = min(values), max(values)
        measures = "/".join(dict.fromkeys(found[name][0] for name in names))
        return [f"Recall of the candidates: {measures} {low:.3f} to {high:.3f}."]
    listed = ", ".join(f"{found[name][0]} {found[name][1]:.3f} of {name}" for name in names)
    return [f"Recall of the candidates: {listed}."]


def describe_lengths(cells: Iterable["Cell"]) -> list[str]:
    """How much of a query and of a document the runs read."""
    found = defaultdict(set)
    for cell in cells:
        spec = _spec(cell.provenance)
        if cell.state == "done" and cell.labels["system"] == "run" and "document_tokens" in spec:
            passages = spec.get("max_passages", 1)
            best = f", best of {passages} such passages" if passages > 1 else ""
            how = f"query {spec['query_tokens']}, document {spec['document_tokens']} tokens{best}"
            found[how].add(cell.labels["backbone"])
    return _sentences("Read", found) if found else []


def describe_selection(cells: Iterable["Cell"]) -> list[str]:
    """By which measure on which collection the runs' checkpoints were selected."""
    found = defaultdict(set)
    for cell in cells:
        if cell.state == "done" and "run" in cell.parents_summary:
            validation = _spec(cell.parents_summary["run"].provenance).get("validation")
            how = (
                f"best {validation['measure']} on {_collections(validation)}"
                if validation
                else "the last one, without validation"
            )
            found[how].add(f"{cell.labels['backbone']} {cell.labels['objective']}")
    return _sentences("Checkpoint", found)


def _collections(validation: Mapping[str, Any]) -> str:
    names = [each["name"] for each in (validation["collection"], *validation.get("further", ()))]
    if len(names) == 1:
        return str(names[0])
    return f"{', '.join(names)} (unweighted mean of {len(names)})"


def _sentences(subject: str, found: Mapping[str, set[str]]) -> list[str]:
    """One sentence for all when there is one way, else one for each way and those it concerns."""
    if len(found) == 1:
        return [f"{subject}: {next(iter(found))}."]
    return [
        f"{subject} of {', '.join(sorted(concerned, key=natural))}: {how}."
        for how, concerned in sorted(found.items())
    ]


def _spec(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    return provenance.get("spec", {})


def _details(provenance: Mapping[str, Any]) -> list[str]:
    """What decides a first stage's ranking, as far as its job has told."""
    spec = _spec(provenance).get("first_stage", {})
    kind = spec.get("type")
    if kind == "bm25":
        version = provenance.get("packages", {}).get("bm25s")
        program = [f"bm25s {version}"] if version else []
        return [*program, f"k1 = {spec['k1']:g}", f"b = {spec['b']:g}", *_analysis(spec)]
    if kind == "run":
        return [PurePath(spec["file"]["path"]).name, f"ordered by {spec['order']}"]
    if kind in ("dense", "splade"):
        model = spec["model"]
        name = next(name for key in ("id", "package", "folder") if (name := model.get(key)))
        lengths = f"query {spec['query_tokens']}, document {spec['document_tokens']} tokens"
        return [name, *filter(None, [spec.get("similarity")]), lengths]
    return []


def _analysis(spec: Mapping[str, Any]) -> list[str]:
    if spec.get("analyzer") == "lucene":
        return ["Lucene's English analysis"]
    if "stemmer" not in spec:
        return []
    return [f"Snowball {spec['stemmer']}" if spec["stemmer"] else "words as they are"]


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
