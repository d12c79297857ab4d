"""What the stored results say about their own making: queries, candidates, selected checkpoints."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from orchestrator.report.table import natural

if TYPE_CHECKING:
    from db.results import Cell

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
