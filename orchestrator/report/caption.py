"""Title, caption, notes and conclusions of a report, derived from its results and options.

Plain text with the signs ± ▲ ▼ < in it; each format escapes it as needed.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from xsweep.db.results import Cell
from xsweep.evaluator.significance import CORRECTIONS
from xsweep.orchestrator.formatting import counted, listed, p_value
from xsweep.orchestrator.report.report import TESTS, Comparison, Report
from xsweep.orchestrator.report.table import ACCEPTED, count_states, natural_key

MAX_LISTED_COLLECTIONS = 6
"""Up to this number collections are listed one by one, beyond it as a range."""
MAX_DETAILED = 4
"""Up to this number of pairs of column and baseline, conclusions give figures; else counts."""
REHEARSAL = (
    "REHEARSAL: tiny random models on small generated data. The numbers show that every job runs "
    "and are no evidence about any model."
)
Found = dict[str, tuple[tuple[str, ...], ...]]
VERDICTS = {"better": "better", "worse": "worse", "same": "no significant difference"}


class Style(NamedTuple):
    """Marks of a format, as its caption explains them."""

    best: str
    second: str
    better: str
    worse: str


class Conclusion(NamedTuple):
    """Results of the tests against one baseline.

    Over few columns there is one conclusion for each; `found` maps verdicts to systems with their
    figures: {"better": (("name", "+0.046", "p = 0.002", "d = 0.26"), ...), ...}. Over many there is
    one for each measure; `found` maps systems to counts of columns:
    {"MiniLM-L6 infonce": (("better 14", "worse 2", "no significant difference 6"),)}.
    """

    heading: str
    found: Found


def title(report: Report) -> str:
    """`quickstart: nDCG@10 and RR@10 on apidocs/test`."""
    measures = list(dict.fromkeys(column.measure for column in report.table.columns))
    places = list(dict.fromkeys(column.place for column in report.table.columns))
    kind = "suite" if _has_suites(report) else "collection"
    where = places[0] if len(places) == 1 else f"{len(places)} {kind}s"
    mark = "REHEARSAL, " if report.rehearsal else ""
    return f"{mark}{report.sweep}: {listed(measures)} on {where}"


def caption(report: Report, style: Style) -> list[str]:
    """Sentences that explain the numbers, at most three: the title goes before them."""
    return [_values(report), _ranks(report, style), _significance(report, style)]


def notes(report: Report) -> list[str]:
    """All else that a reviewer may ask, one paragraph per subject."""
    done = [cell for cell in report.cells if cell.state == ACCEPTED]
    paragraphs = (
        [REHEARSAL] if report.rehearsal else [],
        _missing(report),
        [*_suites(report), *_restriction(report)],
        [*_queries(done), *report.notes, *_left_out(done)],
        [*_facts("Candidates", done, _candidates), *_recall(done)],
        [*_facts("Input limits", done, _input_lengths), *_teachers(report)],
        _facts("Checkpoint", done, _checkpoint),
    )
    return [" ".join(sentences) for sentences in paragraphs if sentences]


def conclusions(report: Report) -> list[Conclusion]:
    """Better, worse and not significantly different systems, for every baseline."""
    groups: dict[str, list[Comparison]] = {}
    for each in report.comparisons:
        if not each.within_block:
            by = report.options.by
            where = f" on {each.column.place}" if detailed(report) else f", number of {by}s"
            heading = f"{each.column.measure}{where}, compared with {report.name(each.baseline)}"
            groups.setdefault(heading, []).append(each)
    describe = _with_figures if detailed(report) else _with_counts
    return [Conclusion(heading, describe(report, group)) for heading, group in groups.items()]


def detailed(report: Report) -> bool:
    """True if the columns are few enough to describe each."""
    return len(report.table.columns) * len(report.baselines) <= MAX_DETAILED


def _has_suites(report: Report) -> bool:
    return any(len(column.collections) > 1 for column in report.table.columns)


def _values(report: Report) -> str:
    unit = "in percent" if report.options.percent else "as fractions of 1"
    accepted = (cell for cell in report.cells if cell.state == ACCEPTED)
    seeds = sorted({cell.labels["seed"] for cell in accepted if "seed" in cell.labels})
    named = ", ".join(map(str, seeds))
    if any(len(entry.means) > 1 for entry in report.table.entries.values()):
        return (
            f"Means over queries, {unit}, and of runs over seeds {named}; ± is the sample standard "
            "deviation (n − 1) over seeds, not over queries."
        )
    if not seeds:
        return f"Means over queries, {unit}."
    return (
        f"Means over queries, {unit}; one accepted seed per run (seed{'s' * (len(seeds) > 1)} "
        f"{named}): no standard deviation, and seed variance is not tested."
    )


def _suites(report: Report) -> list[str]:
    if _has_suites(report):
        variance = (
            " In the tests the variances of its collections' mean differences are summed, with "
            "Satterthwaite's degrees of freedom."
            if report.comparisons and report.options.test == "t"
            else ""
        )
        return [f"A suite's value is the unweighted mean of its collections.{variance}"]
    if report.options.by == "suite":
        return ["No suite is complete in this sweep; its collections are shown individually."]
    return []


def _restriction(report: Report) -> list[str]:
    where = sorted(report.options.where.items())
    chosen = [f"{label} {' or '.join(values)}" for label, values in where]
    return [f"Restricted to {listed(chosen)}."] if chosen else []


def _queries(done: Iterable[Cell]) -> list[str]:
    """Queries of each collection, and those without results, which score 0."""
    queries: dict[str, int] = {}
    empty: dict[str, int] = defaultdict(int)
    for cell in done:
        collection = cell.labels["collection"]
        queries[collection] = len(cell.query_ids)
        without = cell.summary.get("queries_without_results", 0)
        empty[collection] = max(without, empty[collection])
    names = sorted(queries, key=natural_key)
    if len(names) > MAX_LISTED_COLLECTIONS:
        fewest, most = min(queries.values()), max(queries.values())
        sentences = [f"{len(names)} collections with {fewest} to {most} queries each."]
    else:
        sentences = [f"Queries: {', '.join(f'{queries[name]} in {name}' for name in names)}."]
    if missing := [f"{empty[name]} in {name}" for name in names if empty[name]]:
        sentences.append(f"Queries without results, scored 0: {', '.join(missing)}.")
    return sentences


def _left_out(done: Iterable[Cell]) -> list[str]:
    """Queries that are not evaluated, and documents that are no candidates, by collection."""
    without_text, unjudged = dict[str, str](), dict[str, str]()
    own_document, constant = dict[str, None](), dict[str, None]()
    for cell in done:
        name = cell.labels["collection"]
        if cell.summary.get("scores_are_constant"):
            constant[cell.name.removeprefix("evaluate ")] = None
        if "candidates" not in cell.parents_summary:
            continue
        candidates = cell.parents_summary["candidates"]
        if ids := candidates.summary.get("judged_without_text"):
            named = ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")
            without_text[name] = f"{len(ids)} in {name} ({named})"
        counts = candidates.summary.get("queries", 0), candidates.summary.get("judged_queries", 0)
        if counts[0] > counts[1]:
            unjudged[name] = f"{counts[0] - counts[1]} in {name}"
        if _spec(candidates.provenance).get("collection", {}).get("identical_ids") == "drop":
            own_document[name] = None
    subjects = {
        "Judged queries without text, left out": without_text.values(),
        "Queries without judgements, left out": unjudged.values(),
        "Documents with the id of their query, left out in": own_document,
        "WARNING: every candidate has the same score, so ids alone decide": constant,
    }
    return [f"{subject}: {', '.join(found)}." for subject, found in subjects.items() if found]


def _candidates(cell: Cell) -> tuple[str, str]:
    """First stage, its settings and program, and the depth of re-ranking."""
    stage = cell.labels["first_stage"]
    if details := _first_stage(cell.parents_summary["candidates"].provenance):
        stage += f" ({', '.join(details)})"
    return f"{stage}, top {cell.labels['depth']}", cell.labels["collection"]


def _first_stage(provenance: Mapping[str, Any]) -> list[str]:
    """Settings that determine a first stage's ranking, as far as its job recorded them."""
    spec = _spec(provenance).get("first_stage", {})
    kind = spec.get("type")
    if kind == "bm25":
        version = provenance.get("packages", {}).get("bm25s")
        details = [f"bm25s {version}"] if version else []
        details += [f"k1 = {spec['k1']:g}", f"b = {spec['b']:g}"]
        if spec.get("analyzer") == "lucene":
            return [*details, "Lucene English analyzer"]
        if "stemmer" in spec:
            details.append(f"Snowball {spec['stemmer']}" if spec["stemmer"] else "no stemming")
        return details
    if kind == "run":
        return [PurePath(spec["file"]["path"]).name, f"ordered by {spec['order']}"]
    if kind in ("dense", "splade"):
        model = spec["model"]
        name = next(name for key in ("id", "package", "folder") if (name := model.get(key)))
        lengths = f"query {spec['query_tokens']}, document {spec['document_tokens']} tokens"
        return [name, *filter(None, [spec.get("similarity")]), lengths]
    return []


def _recall(done: Iterable[Cell]) -> list[str]:
    """Recall of the first stage, the upper bound of re-ranking."""
    found: dict[str, tuple[str, float]] = {}
    for cell in done:
        if "candidates" in cell.parents_summary:
            for name, value in cell.parents_summary["candidates"].summary.get("recall", {}).items():
                found[cell.labels["collection"]] = (name, value)
    if not found:
        return []
    names = sorted(found, key=natural_key)
    if len(names) > MAX_LISTED_COLLECTIONS:
        values = [value for _, value in found.values()]
        measures = "/".join(dict.fromkeys(found[name][0] for name in names))
        text = f"{measures} {min(values):.3f} to {max(values):.3f}"
    else:
        text = ", ".join(f"{found[name][0]} {found[name][1]:.3f} on {name}" for name in names)
    return [f"Recall of the candidates: {text}."]


def _input_lengths(cell: Cell) -> tuple[str, str] | None:
    """Tokens of a query and of a document that the runs read."""
    spec = _spec(cell.provenance)
    if cell.labels["system"] != "run" or "document_tokens" not in spec:
        return None
    passages = spec.get("max_passages", 1)
    best = f", best of up to {passages} such passages" if passages > 1 else ""
    limits = f"query {spec['query_tokens']}, document {spec['document_tokens']} tokens"
    return limits + best, cell.labels["backbone"]


def _teachers(report: Report) -> list[str]:
    if report.teachers_shown:
        return []
    objectives: dict[str, dict[str, None]] = defaultdict(dict)
    for row in report.table.rows:
        if row.system == "run":
            objectives[row.teacher][row.objective] = None
    each = [f"{teacher} for {listed(list(names))}" for teacher, names in objectives.items()]
    return [f"Teachers: {', '.join(each)}."] if each else []


def _checkpoint(cell: Cell) -> tuple[str, str] | None:
    """Measure and collections that selected a run's checkpoint."""
    if "run" not in cell.parents_summary:
        return None
    choice = "last step, no validation"
    if validation := _spec(cell.parents_summary["run"].provenance).get("validation"):
        further = validation.get("further", ())
        names = [str(each["name"]) for each in (validation["collection"], *further)]
        mean = f" (unweighted mean of {len(names)})" if further else ""
        choice = f"best {validation['measure']} on {', '.join(names)}{mean}"
    return choice, f"{cell.labels['backbone']} {cell.labels['objective']}"


def _spec(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    return provenance.get("spec", {})


def _facts(
    subject: str, done: Iterable[Cell], fact: Callable[[Cell], tuple[str, str] | None]
) -> list[str]:
    """One sentence if all agree, else one for each value with the names that it applies to.

    `fact` returns the value of a cell, and the name that it applies to.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for value, name in filter(None, map(fact, done)):
        found[value].add(name)
    if len(found) == 1:
        return [f"{subject}: {next(iter(found))}."]
    return [
        f"{subject} for {', '.join(sorted(names, key=natural_key))}: {value}."
        for value, names in sorted(found.items())
    ]


def _ranks(report: Report, style: Style) -> str:
    block = report.options.best == "block"
    among = "each backbone's rows of a column" if block else "each column"
    return (
        f"Best in {among} {style.best}, second best {style.second}, by printed value; ties share "
        "the mark."
    )


def _significance(report: Report, style: Style) -> str:
    if not report.comparisons:
        return "No significance tests: no system shares a column with a finished baseline."
    marks = []
    if any(not each.within_block for each in report.comparisons):
        letters = ((row, report.letter(row)) for row in report.baselines)
        named = [report.name(row) + (f" [{x}]" if x else "") for row, x in letters]
        marks.append(
            f"{style.better} and {style.worse}: significantly better and worse than {listed(named)}"
        )
    if any(each.within_block for each in report.comparisons):
        beyond_z = any(letter.isdigit() for letter in report.block_letters.values())
        numbers = "; after z, numbers from 27 on" if beyond_z else ""
        marks.append(
            "letters after a value: significantly better than the systems of the same backbone "
            f"with these letters in brackets{numbers}"
        )
    text = "; ".join(marks)
    options = report.options
    return (
        f"{text[0].upper()}{text[1:]} (two-sided {TESTS[options.test]} on per-query scores "
        f"averaged over seeds, p < {options.alpha:g} {CORRECTIONS[options.correction]} over the "
        f"table's {counted(len(report.comparisons), 'comparison')})."
    )


def _missing(report: Report) -> list[str]:
    pending = [cell for cell in report.cells if cell.state != ACCEPTED]
    entries = report.table.entries
    sentences = []
    if pending:
        planned = counted(len(report.cells), "evaluation")
        sentences.append(f"Missing: {len(pending)} of {planned} ({count_states(pending)}).")
    if any(entry.means and entry.unfinished for entry in entries.values()):
        sentences.append("n/m: n of m seeds accepted so far.")
    if len(entries) < len(report.table.rows) * len(report.table.columns):
        sentences.append("–: not part of the sweep.")
    return sentences


def _with_figures(report: Report, comparisons: Sequence[Comparison]) -> Found:
    return {
        words: tuple(
            (
                report.name(each.row),
                report.signed(each.difference),
                p_value(each.p_corrected),
                f"d = {each.effect:.2f}".replace("-", "−"),
            )
            for each in comparisons
            if each.verdict == verdict
        )
        for verdict, words in VERDICTS.items()
    }


def _with_counts(report: Report, comparisons: Sequence[Comparison]) -> Found:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for each in comparisons:
        counts[report.name(each.row)][each.verdict] += 1
    return {
        name: (tuple(f"{words} {found[verdict]}" for verdict, words in VERDICTS.items()),)
        for name, found in counts.items()
    }
