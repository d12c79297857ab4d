"""Published results beside ours, from reference files: plain CSV that anyone can add."""

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from xsweep.errors import ConfigError, DataError, unknown_name
from xsweep.evaluator.data.suites import SUITES
from xsweep.orchestrator.report.report import Report, Section
from xsweep.orchestrator.report.table import (
    Column,
    Entry,
    Row,
    build_table,
    complete_suites,
    row_of,
    without_stage,
)

FOLDER = Path(__file__).resolve().parents[2] / "sweeps" / "reference"
SUITE_NAMES = {id: name for members in SUITES.values() for name, id in members.items()}
"""Id of a suite's collection in ir_datasets -> its name."""


class Published(NamedTuple):
    """One published result; an empty field matches anything of ours."""

    system: str
    model: str
    """Hugging Face id or label of a backbone; name of a teacher or first stage."""
    place: str
    measure: str
    value: float
    objective: str = ""
    teacher: str = ""
    first_stage: str = ""
    version: str = ""


COLUMNS = Published._fields
REQUIRED = set(COLUMNS) - set(Published._field_defaults)


def find_reference(name: str) -> Path:
    """The CSV file with that path, or with that name in `sweeps/reference/`.

    Raises ConfigError if there is none.
    """
    known = {path.stem: path for path in sorted(FOLDER.glob("*.csv"))}
    if name in known:
        return known[name]
    if Path(name).is_file():
        return Path(name)
    raise unknown_name(f"no reference {name!r}: use a CSV file, or a shipped one", name, [*known])


def read_reference(path: Path) -> tuple[str, list[Published]]:
    """The source, from the comment lines at the top, and the results.

    Raises DataError with the line for a file in another format.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    source = [line.lstrip("# ") for line in lines if line.startswith("#")]
    offset = len(source)
    reader = csv.DictReader(lines[offset:])
    given = reader.fieldnames or []
    wrong = [f"lacks {each}" for each in sorted(REQUIRED - set(given))]
    wrong += [f"has the unknown column {each}" for each in sorted(set(given) - set(COLUMNS))]
    if wrong:
        raise DataError(
            f"{path}:{offset + 1}: the header {', '.join(wrong)}; columns are {', '.join(COLUMNS)}"
        )
    published = []
    for line in reader:
        try:
            fields: dict[str, Any] = {name: text.strip() for name, text in line.items()}
            published.append(Published(**fields | {"value": float(fields["value"])}))
        except (AttributeError, TypeError, ValueError):
            raise DataError(
                f"{path}:{offset + reader.line_num}: expected {len(given)} fields with a number as "
                f"value, found {list(line.values())}"
            ) from None
    return " ".join(source), published


def reference_section(report: Report, name: str) -> Section:
    """Our results beside the published ones for the same system, measure and place.

    A system matches by backbone id or label, objective, and, if the file has them, teacher and
    first stage; a place is a collection or a complete suite. Raises ConfigError if nothing matches.
    """
    source, published = read_reference(find_reference(name))
    models = _models(report)
    stages = {
        cell.labels["collection"]: _plain(cell.labels["first_stage"]) for cell in report.cells
    }
    lines: list[tuple[str, ...]] = []
    inside = 0
    for row, column, entry in _results(report):
        for each in published:
            if not _matches(each, row, column, models[row], stages):
                continue
            spread, in_range = "", "one seed"
            if len(entry.means) > 1:
                spread = f" ± {report.number(entry.std)}"
                within = min(entry.means.values()) <= each.value <= max(entry.means.values())
                in_range = "yes" if within else "no"
                inside += within
            lines.append(
                (
                    report.name(row),
                    f"{column.measure} {column.place}",
                    report.number(entry.mean) + spread,
                    report.number(each.value) + (f" ({each.version})" if each.version else ""),
                    report.signed(entry.mean - each.value),
                    in_range,
                )
            )
    if not lines:
        raise ConfigError(
            f"the reference {name!r} has nothing in common with this sweep. It has "
            f"{_first(each.model for each in published)} on "
            f"{_first(each.place for each in published)}; the sweep has "
            f"{_first(row.model for row in report.table.rows)} on {_first(stages)}"
        )
    return Section(
        f"Compared with {Path(name).stem}",
        ("system", "measure and place", "ours", "published", "difference", "in seeds' range"),
        lines,
        f"In {inside} of {len(lines)} rows the published value lies within the range of our seeds. "
        f"Source: {source or name}",
    )


def _results(report: Report) -> Iterator[tuple[Row, Column, Entry]]:
    """Results on collections and on complete suites, whatever the report's columns."""
    measures = list(dict.fromkeys(column.measure for column in report.table.columns))
    suites = complete_suites({cell.labels["collection"] for cell in report.cells})
    by_collection = build_table(report.cells, measures)
    by_suite = build_table(report.cells, measures, suites)
    for column in dict.fromkeys(by_collection.columns + by_suite.columns):
        for row in by_collection.rows:
            if entry := by_collection.result(row, column) or by_suite.result(row, column):
                yield row, column, entry


def _matches(
    published: Published, row: Row, column: Column, models: set[str], stages: dict[str, str]
) -> bool:
    place = without_stage(column.place)
    places = (column.place, place, SUITE_NAMES.get(place, place))
    return (
        published.system == row.system
        and _plain(published.model) in models
        and _plain(published.measure) == _plain(column.measure)
        and _plain(published.place) in map(_plain, places)
        and _plain(published.objective) in ("", _plain(row.objective))
        and _plain(published.teacher) in ("", _plain(row.teacher))
        and all(_plain(published.first_stage) in ("", stages[name]) for name in column.collections)
    )


def _models(report: Report) -> dict[Row, set[str]]:
    """Names of each row's model: its label, and the id that its trainings recorded."""
    names: dict[Row, set[str]] = {}
    for cell in report.cells:
        row = row_of(cell.labels)
        names.setdefault(row, {_plain(row.model)})
        if "run" in cell.parents_summary:
            spec = cell.parents_summary["run"].provenance.get("spec", {})
            names[row].add(_plain(spec.get("backbone", {}).get("id") or row.model))
    return names


def _plain(name: str) -> str:
    """Letters and digits only: `ADR-MSE` and `adr_mse` are equal."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _first(names: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(names))
    return ", ".join(distinct[:4]) + (", ..." if len(distinct) > 4 else "")
