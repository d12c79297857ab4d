"""Options and content of a report: the table, its comparisons and its marks, without markup."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from xsweep.db.results import Cell
from xsweep.errors import ConfigError
from xsweep.evaluator.significance import CORRECTIONS
from xsweep.orchestrator.formatting import signed
from xsweep.orchestrator.report.table import Column, Row, Table

TESTS = {"t": "paired t-test", "randomization": "paired randomization test"}
"""Significance tests, with the names that captions use."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Results, comparisons and sections of a report. Raises ConfigError for an invalid option."""

    measures: Sequence[str] = ("nDCG@10",)
    by: str = "collection"
    """One column per `collection` or per `suite`."""
    best: str = "column"
    """Best and second best are marked per `column`, or per `block` of one backbone's rows."""
    digits: int = 3
    percent: bool = False
    where: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Label -> accepted values; runs with other values are left out."""
    baselines: Sequence[str] = ("first_stage",)
    """`first_stage`, `teacher`, or the name of a row."""
    pairs: bool = False
    """Also compare all pairs of a backbone's systems."""
    test: str = "t"
    correction: str = "holm"
    alpha: float = 0.05
    effects: bool = False
    """Add sections on the effects of objective, backbone and teacher."""
    cost: bool = False
    """Add a section on the hours of training and evaluation."""
    compare_to: Sequence[str] = ()
    """Reference files with published results, each a section."""

    def __post_init__(self) -> None:
        for option, value, known in (
            ("--by", self.by, ("collection", "suite")),
            ("--best", self.best, ("column", "block")),
            ("--test", self.test, TESTS),
            ("--correction", self.correction, CORRECTIONS),
        ):
            if value not in known:
                raise ConfigError(f"{option} {value!r}: use one of {', '.join(known)}")
        if not 1 <= self.digits <= 10:
            raise ConfigError(f"--digits {self.digits}: use 1 to 10")
        if not 0 < self.alpha < 1:
            raise ConfigError(f"--alpha {self.alpha}: use a number between 0 and 1, such as 0.05")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Presentation of a report; each format uses the fields that concern it."""

    width: int = 110
    """Text: characters per line."""
    standalone: bool = False
    """LaTeX: a complete document."""
    wide: bool = False
    """LaTeX: span both columns of a two-column page."""
    columns: int = 1
    """LaTeX: columns of the paper's pages; with 2, the main table fits one unless `wide`."""
    landscape: bool = False
    """LaTeX: rotate tables by 90 degrees, each on its own page."""
    max_columns: int = 0
    """LaTeX: columns per tabular, the rest continues below; 0 for what the page has room for."""
    figures: tuple[str, ...] = ()
    """LaTeX: figure files to include, relative to the document."""


PLAIN = Layout()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row against one baseline in one column, over the same queries."""

    row: Row
    column: Column
    baseline: Row
    difference: float
    """Mean of the row minus mean of the baseline."""
    effect: float
    """Cohen's d of the paired differences: their mean divided by their standard deviation."""
    queries: int
    p: float
    p_corrected: float
    """p after the correction over all comparisons of the report."""
    verdict: str
    """`better` or `worse` if p_corrected < alpha, else `same`."""
    within_block: bool = False
    """True for two systems of one backbone, neither of them a baseline of the report."""

    @property
    def reversed(self) -> "Comparison":
        """The same comparison with row and baseline exchanged."""
        return replace(
            self,
            row=self.baseline,
            baseline=self.row,
            difference=-self.difference,
            effect=-self.effect,
            verdict={"better": "worse", "worse": "better"}.get(self.verdict, self.verdict),
        )


class DisplayCell(NamedTuple):
    """Text of one row in one column."""

    value: str = ""
    """`0.534`, empty while no seed is accepted."""
    spread: str = ""
    """Standard deviation over seeds, empty with fewer than two."""
    rank: int = 0
    """1 for the best, 2 for the second best, else 0."""
    marks: tuple[tuple[str, str], ...] = ()
    """(`better` or `worse`, letter of the baseline; no letter if there is one baseline)."""
    beaten: tuple[str, ...] = ()
    """Letters of the backbone's other systems that this one is significantly better than."""
    note: str = ""
    """`2/3` for a partial result; without a result, the state that prevents it: `failed`."""

    @property
    def beaten_text(self) -> str:
        """`acd`, or `a,d,27` if there are more systems than letters."""
        return ("," if any(map(str.isdigit, self.beaten)) else "").join(self.beaten)


class Section(NamedTuple):
    """A small table below the main one."""

    title: str
    heads: tuple[str, ...]
    lines: Sequence[tuple[str, ...]]
    note: str


class Ranking(NamedTuple):
    """Levels of one choice by mean rank, the best first, with the critical difference."""

    measure: str
    choice: str
    levels: tuple[str, ...]
    mean_ranks: tuple[float, ...]
    """1 is best; ties share their average rank."""
    blocks: int
    """Number of collections or queries that the ranks are averaged over."""
    over: str
    """`collections` or `queries`."""
    p: float
    """Friedman's test of the hypothesis that all levels have the same rank."""
    critical: float
    """Critical difference: levels with closer mean ranks do not differ significantly (Nemenyi)."""
    cliques: tuple[tuple[int, int], ...]
    """First and last index of each maximal run of levels without a significant difference."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A table with its comparisons and further sections."""

    sweep: str
    options: ReportOptions
    cells: tuple[Cell, ...]
    table: Table
    baselines: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    sections: tuple[Section, ...] = ()
    rankings: tuple[Ranking, ...] = ()
    """Data of the critical-difference diagrams."""
    notes: tuple[str, ...] = ()
    """Sentences of the caption about the queries of several sweeps."""

    @cached_property
    def rehearsal(self) -> bool:
        """True for results of tiny random models; a sweep has either all or none."""
        return any(cell.labels.get("rehearsal") for cell in self.cells)

    @cached_property
    def ranks(self) -> dict[tuple[Row, Column], int]:
        """1 for the rows with the best printed value, 2 for those with the second best.

        Per column, or with `best` "block" per column and backbone.
        """
        ranks: dict[tuple[Row, Column], int] = {}
        groups = [list(self.table.rows)]
        if self.options.best == "block":
            groups = [block for block in self.table.blocks if block[0].system == "run"]
        for column in self.table.columns:
            for group in groups:
                printed = {
                    row: self.number(entry.mean)
                    for row in group
                    if (entry := self.table.result(row, column))
                }
                best_two = sorted(set(printed.values()), key=float)[:-3:-1]
                for rank, best in enumerate(best_two, start=1):
                    ranks |= {(row, column): rank for row, v in printed.items() if v == best}
        return ranks

    @cached_property
    def compared(self) -> dict[tuple[Row, Column], list[Comparison]]:
        """Comparisons of each row and column, in the order of the baselines.

        A comparison of two systems of a backbone is listed under both, as seen from each.
        """
        found: dict[tuple[Row, Column], list[Comparison]] = {}
        for each in self.comparisons:
            found.setdefault((each.row, each.column), []).append(each)
            if each.within_block:
                found.setdefault((each.baseline, each.column), []).append(each.reversed)
        return found

    def number(self, value: float) -> str:
        """A value as the table prints it: 0.5344 as `0.534`, or as `53.4` in percent."""
        scale, digits = self._scale
        return f"{value * scale:.{digits}f}"

    def signed(self, value: float) -> str:
        """A difference as the table prints it: `+0.012` or `−0.012`."""
        scale, digits = self._scale
        return signed(value * scale, digits)

    @property
    def _scale(self) -> tuple[int, int]:
        digits = self.options.digits
        return (100, max(digits - 2, 0)) if self.options.percent else (1, digits)

    def letter(self, baseline: Row) -> str:
        """Mark of a baseline: a, b, ... z, then 27, 28, ...; empty if there is only one.

        If letters name the systems of a backbone, baselines are numbered instead: 1, 2, ...
        """
        if len(self.baselines) == 1:
            return ""
        place = self.baselines.index(baseline)
        return str(place + 1) if self.options.pairs else _letter(place)

    @cached_property
    def block_letters(self) -> dict[Row, str]:
        """With `pairs`, each run's letter among its backbone's: a, b, ... z, then 27, 28, ..."""
        if not self.options.pairs:
            return {}
        runs = [block for block in self.table.blocks if block[0].system == "run"]
        return {row: _letter(place) for block in runs for place, row in enumerate(block)}

    def shown(self, row: Row, column: Column) -> DisplayCell:
        """Text of one row in one column."""
        entry = self.table.entries.get((row, column))
        if entry is None:
            return DisplayCell(note="–")
        if not entry.means:
            return DisplayCell(note=entry.unfinished[0][0])
        compared = self.compared.get((row, column), ())
        beaten = [
            self.block_letters[each.baseline]
            for each in compared
            if each.verdict == "better" and each.within_block
        ]
        return DisplayCell(
            value=self.number(entry.mean),
            spread=self.number(entry.std) if len(entry.means) > 1 else "",
            rank=self.ranks.get((row, column), 0),
            marks=tuple(
                (each.verdict, self.letter(each.baseline))
                for each in compared
                if each.verdict != "same" and not each.within_block
            ),
            beaten=tuple(sorted(beaten, key=lambda each: (each.isdigit(), len(each), each))),
            note=f"{len(entry.means)}/{entry.planned}" if entry.unfinished else "",
        )

    @cached_property
    def teachers_shown(self) -> bool:
        """True if rows need the teacher's name: some objective has several."""
        pairs = {(row.objective, row.teacher) for row in self.table.rows if row.system == "run"}
        return len(pairs) > len({objective for objective, _ in pairs})

    def name(self, row: Row) -> str:
        """Name of a row in running text, without the teacher if objectives have only one."""
        if row.system == "run" and not self.teachers_shown:
            return f"{row.model} {row.objective}"
        return row.name

    def label(self, row: Row) -> tuple[str, ...]:
        """Parts of a row's name under `label_heads`; a reference row has a single part."""
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
        """Levels of the columns' heads: measure above place, without a level that is constant."""
        measures = tuple(column.measure for column in self.table.columns)
        places = tuple(column.place for column in self.table.columns)
        levels = [level for level in (measures, places) if len(set(level)) > 1]
        return levels or [measures]


def _letter(place: int) -> str:
    return chr(ord("a") + place) if place < 26 else str(place + 1)
