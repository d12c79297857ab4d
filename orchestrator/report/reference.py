"""Published figures beside ours: reference files are plain CSV that anyone can add."""

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from xsweep.errors import ConfigError, DataError, did_you_mean
from xsweep.evaluator.data.suites import SUITES
from xsweep.orchestrator.report.report import Report, Section
from xsweep.orchestrator.report.table import (
    Column,
    Entry,
    Row,
    build_table,
    complete_suites,
    row_of,
)

FOLDER = Path(__file__).resolve().parents[2] / "sweeps" / "reference"


NEEDED = ("system", "model", "place", "measure", "value")


COLUMNS = (*NEEDED, "objective", "teacher", "first_stage", "version")


class Published(NamedTuple):
    """One published figure; an empty field matches anything of ours."""

    system: str
    model: str
    """Hugging Face id or label of a backbone; a teacher's or first stage's name."""
    place: str
    measure: str
    value: float
    objective: str = ""
    teacher: str = ""
    first_stage: str = ""
    version: str = ""


def find_reference(name: str) -> Path:
    """The CSV file of that path, or of that name in `sweeps/reference/`. Raises ConfigError."""
    known = {path.stem: path for path in sorted(FOLDER.glob("*.csv"))}
    if name in known:
        return known[name]
    if Path(name).is_file():
        return Path(name)
    hint = did_you_mean(name, known)
    raise ConfigError(
        f"no reference {name!r}: give a CSV file, or one of {', '.join(known) or 'none'}"
        + (f"; {hint}" if hint else "")
    )


def read_reference(path: Path) -> tuple[str, list[Published]]:
    """The source, which the comment lines at the top tell, and the figures. Raises DataError."""
    lines = path.read_text(encoding="utf-8").splitlines()
    source = [line.lstrip("# ") for line in lines if line.startswith("#")]
    offset = len(source)
    reader = csv.DictReader(lines[offset:])
    given = reader.fieldnames or []
    missing, unknown = set(NEEDED) - set(given), set(given) - set(COLUMNS)
    if missing or unknown:
        wrong = [f"lacks {each}" for each in sorted(missing)]
        wrong += [f"has the unknown {each}" for each in sorted(unknown)]
        raise DataError(
            f"{path}:{offset + 1}: the head {', '.join(wrong)}; columns are {', '.join(COLUMNS)}"
        )
    figures = []
    for line in reader:
        try:
            fields: dict[str, Any] = {name: text.strip() for name, text in line.items()}
            figures.append(Published(**fields | {"value": float(fields["value"])}))
        except (AttributeError, TypeError, ValueError):
            raise DataError(
                f"{path}:{offset + reader.line_num}: expected {len(given)} fields with a number as "
                f"value, found {list(line.values())}"
            ) from None
    return " ".join(source), figures


def reference_section(report: Report, name: str) -> Section:
    """Our systems and the published figures that mean the same, side by side.

    They match by backbone id or label, objective, and, where the file tells them, teacher and first
    stage; on collections and on whole suites. Raises ConfigError when nothing matches.
    """
    source, published = read_reference(find_reference(name))
    models = _models(report)
    stages = {
        cell.labels["collection"]: _plain(cell.labels["first_stage"]) for cell in report.cells
    }
    lines: list[tuple[str, ...]] = []
    inside = 0
    for row, column, entry in _finished(report):
        for each in published:
            if not _means_the_same(each, row, column, models[row], stages):
                continue
            difference = entry.mean - each.value
            low, high = min(entry.means.values()), max(entry.means.values())
            within = len(entry.means) > 1 and low <= each.value <= high
            inside += within
            lines.append(
                (
                    report.name(row),
                    f"{column.measure} {column.place}",
                    report.number(entry.mean)
                    + (f" ± {report.number(entry.std)}" if len(entry.means) > 1 else ""),
                    report.number(each.value) + (f" ({each.version})" if each.version else ""),
                    f"{'−' if difference < 0 else '+'}{report.number(abs(difference))}",
                    "yes" if within else "no" if len(entry.means) > 1 else "one seed",
                )
            )
    if not lines:
        raise ConfigError(
            f"the reference {name!r} has nothing in common with this sweep. It has "
            f"{_some(each.model for each in published)} on "
            f"{_some(each.place for each in published)}; the sweep has "
            f"{_some(row.model for row in report.table.rows)} on {_some(stages)}"
        )
    return Section(
        f"Compared with {Path(name).stem}",
        ("system", "measure and place", "ours", "published", "difference", "in seeds' range"),
        lines,
        f"In {inside} of {len(lines)} places the published figure lies between our lowest and our "
        f"highest seed. Source: {source or name}",
    )


def _finished(report: Report) -> Iterator[tuple[Row, Column, Entry]]:
    """Every row with results on collections and on whole suites, whatever the report's columns."""
    measures = list(dict.fromkeys(column.measure for column in report.table.columns))
    suites = complete_suites({cell.labels["collection"] for cell in report.cells})
    by_collection = build_table(report.cells, measures)
    by_suite = build_table(report.cells, measures, suites)
    entries = by_collection.entries | by_suite.entries
    columns = dict.fromkeys(by_collection.columns + by_suite.columns)
    for column in columns:
        for row in by_collection.rows:
            if (row, column) in entries and entries[row, column].means:
                yield row, column, entries[row, column]


def _means_the_same(
    published: Published, row: Row, column: Column, models: set[str], stages: dict[str, str]
) -> bool:
    return (
        published.system == row.system
        and _plain(published.model) in models
        and _plain(published.measure) == _plain(column.measure)
        and _plain(published.place) in _names_of(column)
        and _plain(published.objective) in ("", _plain(row.objective))
        and _plain(published.teacher) in ("", _plain(row.teacher))
        and all(_plain(published.first_stage) in ("", stages[name]) for name in column.collections)
    )


def _names_of(column: Column) -> set[str]:
    ids = {id: name for members in SUITES.values() for name, id in members.items()}
    return {_plain(column.place), _plain(ids.get(column.place, column.place))}


def _models(report: Report) -> dict[Row, set[str]]:
    """What each row's model is called: its label, and the id that its trainings recorded."""
    names: dict[Row, set[str]] = {}
    for cell in report.cells:
        row = row_of(cell)
        names.setdefault(row, {_plain(row.model)})
        if "run" in cell.parents_summary:
            spec = cell.parents_summary["run"].provenance.get("spec", {})
            names[row].add(_plain(spec.get("backbone", {}).get("id") or row.model))
    return names


def _plain(name: str) -> str:
    """Letters and digits only: `ADR-MSE` and `adr_mse` are the same."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _some(names: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(names))
    return ", ".join(distinct[:4]) + (", ..." if len(distinct) > 4 else "")
