"""What every format shows: the table with its marks, as strings that carry no formatting yet."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from xsweep.orchestrator.report.significance import Comparison
from xsweep.orchestrator.report.table import Column, Entry, Row, Table

if TYPE_CHECKING:
    from xsweep.db.results import Cell

    pass

    pass


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a report is laid out; every format takes what concerns it."""

    width: int = 110
    """Characters of a line of text."""
    standalone: bool = False
    """LaTeX: a document that compiles by itself."""
    wide: bool = False
    """LaTeX: across both columns of a two-column page."""
    landscape: bool = False
    """LaTeX: turned by 90 degrees, on a page of its own."""
    max_columns: int = 0
    """LaTeX: columns of one tabular, more continue below; 0 for 6, or 10 in landscape."""
    figures: tuple[str, ...] = ()
    """LaTeX: picture files to include, as the document will find them."""


PLAIN = Layout()


FORMATS = ("text", "markdown", "latex", "csv", "json", "html")


class Ranking(NamedTuple):
    """Levels of one choice, the best first, with what tells them apart."""

    measure: str
    choice: str
    levels: tuple[str, ...]
    mean_ranks: tuple[float, ...]
    """1 is best; ties share their average rank."""
    blocks: int
    """Collections, or queries, over which the ranks are averaged."""
    over: str
    p: float
    """Of Friedman's test that all levels rank alike."""
    critical: float
    """Levels whose mean ranks differ by less are not told apart (Nemenyi)."""
    cliques: tuple[tuple[int, int], ...]
    """First and last place of every longest run of levels that are not told apart."""
    alpha: float


class DisplayCell(NamedTuple):
    """One place of the table, ready to be styled."""

    value: str = ""
    """`0.534`, or nothing while no seed is accepted."""
    spread: str = ""
    """Standard deviation over seeds, or nothing."""
    rank: int = 0
    """1 best of the column, 2 second, 0 neither."""
    marks: tuple[tuple[str, str], ...] = ()
    """(`better` or `worse`, letter of the baseline; no letter while there is one baseline)."""
    beaten: tuple[str, ...] = ()
    """Letters of the backbone's other systems that this one is significantly better than."""
    note: str = ""
    """`2/3` when not every planned seed is accepted; without any, what keeps it: `failed`."""

    @property
    def beaten_text(self) -> str:
        """`acd`, or `a,d,27` where there are more systems than letters."""
        return ("," if any(map(str.isdigit, self.beaten)) else "").join(self.beaten)


class Section(NamedTuple):
    """A small table beside the main one."""

    title: str
    heads: tuple[str, ...]
    lines: Sequence[tuple[str, ...]]
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
    best: str = "column"
    """Best and second are found per `column`, or per `block`: each backbone's rows."""
    pairs: bool = False
    """Whether all pairs of a backbone's systems were compared, too."""
    where: Mapping[str, tuple[str, ...]]
    sections: tuple[Section, ...] = ()
    rankings: "tuple[Ranking, ...]" = ()
    """What the critical-difference diagrams draw."""

    @property
    def rehearsal(self) -> bool:
        """Whether these are figures of tiny random models; cells of both kinds never meet."""
        return any(cell.labels.get("rehearsal") for cell in self.cells)

    @cached_property
    def ranks(self) -> dict[tuple[Row, Column], int]:
        """1 for every row with the best value as printed, 2 for the next value's rows.

        Among a column's rows, or, with `best` "block", among those of the same backbone.
        """
        ranks: dict[tuple[Row, Column], int] = {}
        groups = self.table.blocks if self.best == "block" else [list(self.table.rows)]
        for column in self.table.columns:
            values = {row: self.number(entry.mean) for row, entry in self.in_column(column)}
            for group in groups:
                if self.best == "block" and group[0].system != "run":
                    continue
                printed = {row: values[row] for row in group if row in values}
                best_two = sorted(set(printed.values()), key=float)[:-3:-1]
                for rank, best in enumerate(best_two, start=1):
                    ranks |= {(row, column): rank for row, v in printed.items() if v == best}
        return ranks

    @cached_property
    def compared(self) -> dict[tuple[Row, Column], list[Comparison]]:
        """The comparisons of each place of the table, in the baselines' order.

        A pair of a backbone's systems stands at both of them, seen from each.
        """
        found: dict[tuple[Row, Column], list[Comparison]] = {}
        for each in self.comparisons:
            found.setdefault((each.row, each.column), []).append(each)
            if each.within_block:
                found.setdefault((each.baseline, each.column), []).append(each.reversed)
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
        """a, b, ... z, then 27, 28, ...; nothing while there is only one baseline.

        Where letters name the systems of a backbone, baselines are numbered instead: 1, 2, ...
        """
        if len(self.baselines) == 1:
            return ""
        place = self.baselines.index(baseline)
        return str(place + 1) if self.pairs else _letter(place)

    @cached_property
    def block_letters(self) -> dict[Row, str]:
        """With `pairs`, each run's letter among its backbone's: a, b, ... z, then 27, 28, ..."""
        if not self.pairs:
            return {}
        runs = [block for block in self.table.blocks if block[0].system == "run"]
        return {row: _letter(place) for block in runs for place, row in enumerate(block)}

    def shown(self, row: Row, column: Column) -> DisplayCell:
        """What stands in one place of the table."""
        entry = self.table.entries.get((row, column))
        if entry is None:
            return DisplayCell(note="–")
        if not entry.means:
            return DisplayCell(note=entry.unfinished[0][0])
        return DisplayCell(
            value=self.number(entry.mean),
            spread=self.number(entry.std) if len(entry.means) > 1 else "",
            rank=self.ranks.get((row, column), 0),
            marks=tuple(
                (each.verdict, self.letter(each.baseline))
                for each in self.compared.get((row, column), ())
                if each.verdict != "same" and not each.within_block
            ),
            beaten=tuple(
                sorted(
                    (
                        self.block_letters[each.baseline]
                        for each in self.compared.get((row, column), ())
                        if each.verdict == "better" and each.within_block
                    ),
                    key=lambda letter: (letter.isdigit(), len(letter), letter),
                )
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
        letters = [self.letter(row)] if row in self.baselines else []
        letters = [letter for letter in (*letters, self.block_letters.get(row, "")) if letter]
        return (*parts, f"{last} [{', '.join(letters)}]" if letters else last)

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


def _letter(place: int) -> str:
    return chr(ord("a") + place) if place < 26 else str(place + 1)
