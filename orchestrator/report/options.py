"""Options of a report: `ReportOptions` decides its numbers, `Layout` its presentation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from xsweep.errors import ConfigError
from xsweep.evaluator.significance import CORRECTIONS

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
    landscape: bool = False
    """LaTeX: rotate tables by 90 degrees, each on its own page."""
    max_columns: int = 0
    """LaTeX: columns per tabular, the rest continues below; 0 for 6, or 10 in landscape."""
    figures: tuple[str, ...] = ()
    """LaTeX: figure files to include, relative to the document."""


PLAIN = Layout()
