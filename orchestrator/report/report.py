"""What every format shows: the table with its marks, as strings that carry no formatting yet."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.report.comparisons import Comparison
from orchestrator.report.table import Column, Entry, Row, Table

if TYPE_CHECKING:
    from db.results import Cell


class Shown(NamedTuple):
    """One place of the table, ready to be styled."""

    value: str = ""
    """`0.534`, or nothing while no seed is accepted."""
    spread: str = ""
    """Standard deviation over seeds, or nothing."""
    rank: int = 0
    """1 best of the column, 2 second, 0 neither."""
    marks: tuple[tuple[str, str], ...] = ()
    """(`better` or `worse`, letter of the baseline; no letter while there is one baseline)."""
    note: str = ""
    """`2/3` when not every planned seed is accepted; without any, what keeps it: `failed`."""


class Section(NamedTuple):
    """A small table beside the main one."""

    title: str
    heads: tuple[str, ...]
    lines: list[tuple[str, ...]]
    note: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """A table, its comparisons, and the settings under which both were made."""

    sweep: str
    cells: tuple["Cell", ...]
    table: Table
    baselines: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    alpha: float
    correction: str
    test: str
    digits: int
    percent: bool
    by: str = "collection"
    where: Mapping[str, tuple[str, ...]]
    sections: tuple[Section, ...] = ()

    @cached_property
    def ranks(self) -> dict[tuple[Row, Column], int]:
        """1 for every row with a column's best value as printed, 2 for the next value's rows."""
        ranks: dict[tuple[Row, Column], int] = {}
        for column in self.table.columns:
            values = {row: self.number(entry.mean) for row, entry in self.in_column(column)}
            for rank, best in enumerate(sorted(set(values.values()), key=float)[:-3:-1], start=1):
                ranks |= {(row, column): rank for row, value in values.items() if value == best}
        return ranks

    @cached_property
    def compared(self) -> dict[tuple[Row, Column], list[Comparison]]:
        """The comparisons of each place of the table, in the baselines' order."""
        found: dict[tuple[Row, Column], list[Comparison]] = {}
        for each in self.comparisons:
            found.setdefault((each.row, each.column), []).append(each)
        return found

    def in_column(self, column: Column) -> Iterator[tuple[Row, Entry]]:
        """The rows with at least one accepted result in a column."""
        for row in self.table.rows:
            entry = self.table.entries.get((row, column))
            if entry and entry.means:
                yield row, entry

    def number(self, value: float) -> str:
        """A value as the table prints it, in percent where that was asked: 0.5344 -> 0.534."""
        scale, digits = (100, max(self.digits - 2, 0)) if self.percent else (1, self.digits)
        return f"{value * scale:.{digits}f}"

    def letter(self, baseline: Row) -> str:
        """a, b, ... z, then 27, 28, ...; nothing while there is only one baseline."""
        place = self.baselines.index(baseline)
        if len(self.baselines) == 1:
            return ""
        return chr(ord("a") + place) if place < 26 else str(place + 1)

    def shown(self, row: Row, column: Column) -> Shown:
        """What stands in one place of the table."""
        entry = self.table.entries.get((row, column))
        if entry is None:
            return Shown(note="–")
        if not entry.means:
            return Shown(note=entry.unfinished[0][0])
        return Shown(
            value=self.number(entry.mean),
            spread=self.number(entry.std) if len(entry.means) > 1 else "",
            rank=self.ranks.get((row, column), 0),
            marks=tuple(
                (each.verdict, self.letter(each.baseline))
                for each in self.compared.get((row, column), ())
                if each.verdict != "same"
            ),
            note=f"{len(entry.means)}/{entry.planned}" if entry.unfinished else "",
        )

    @cached_property
    def teachers_shown(self) -> bool:
        """Whether rows need the teacher's name: some objective has several."""
        pairs = {(row.objective, row.teacher) for row in self.table.rows if row.system == "run"}
        return len(pairs) > len({objective for objective, _ in pairs})

    def name(self, row: Row) -> str:
        """The row in running text, without its teacher where objectives have only one."""
        if row.system == "run" and not self.teachers_shown:
            return f"{row.model} {row.objective}"
        return row.name

    def label(self, row: Row) -> tuple[str, ...]:
        """The row's name cut into the columns of `label_heads`; reference rows have one part."""
        teacher = [row.teacher] if self.teachers_shown else []
        *parts, last = (row.model, row.objective, *teacher) if row.system == "run" else (row.name,)
        letter = self.letter(row) if row in self.baselines else ""
        return (*parts, f"{last} [{letter}]" if letter else last)

    @cached_property
    def label_heads(self) -> tuple[str, ...]:
        """Heads of the label columns."""
        return ("Backbone", "Objective", *(["Teacher"] if self.teachers_shown else []))

    @cached_property
    def heads(self) -> list[tuple[str, ...]]:
        """Levels of the columns' heads: measure above place, a level that never varies left out."""
        measures = tuple(column.measure for column in self.table.columns)
        places = tuple(column.place for column in self.table.columns)
        levels = [level for level in (measures, places) if len(set(level)) > 1]
        return levels or [measures]

    @cached_property
    def blocks(self) -> list[list[Row]]:
        """Rows that belong together: the reference rows, then each backbone's."""

        def block(row: Row) -> str:
            return row.model if row.system == "run" else ""

        return [list(rows) for _, rows in groupby(self.table.rows, key=block)]
