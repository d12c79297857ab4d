"""Names of measures, which are ir_measures': nDCG@10, RR(rel=2)@10, AP, R@100, ..."""

import re
from typing import NamedTuple

from xsweep.errors import ConfigError

NEEDS_CUTOFF = {"nDCG": False, "RR": False, "AP": False, "P": True, "R": True, "Success": True}
"""The known measures; True for those that need a cutoff."""

_NAME = re.compile(r"(?P<family>[A-Za-z]+)(?:\(rel=(?P<relevant>\d+)\))?(?:@(?P<cutoff>\d+))?")


class Measure(NamedTuple):
    """One measure; `str()` gives its canonical name."""

    family: str
    cutoff: int | None
    relevant_grade: int
    """Smallest grade that counts as relevant; nDCG takes the grades themselves."""

    def __str__(self) -> str:
        relevant = f"(rel={self.relevant_grade})" if self.relevant_grade != 1 else ""
        return f"{self.family}{relevant}{f'@{self.cutoff}' if self.cutoff else ''}"


ALIASES = {"mrr": "RR", "map": "AP", "recall": "R", "precision": "P"}
"""Names of measures in other programs, with ours."""


def parse_measure(name: str) -> Measure:
    """Parses a measure's name: `RR(rel=2)@10` is ("RR", 10, 2).

    Raises ConfigError for an unknown name.
    """
    found = _NAME.fullmatch(name.strip())
    by_lower_name = {family.lower(): family for family in NEEDS_CUTOFF}
    family = by_lower_name.get(found["family"].lower()) if found else None
    if found and family is None and (alias := ALIASES.get(found["family"].lower())):
        renamed = name.replace(found["family"], alias)
        raise ConfigError(f"unknown measure {name!r}: it is called {renamed} here")
    if not found or family is None:
        raise ConfigError(
            f"unknown measure {name!r}: use one of {', '.join(NEEDS_CUTOFF)} with a cutoff and, "
            "where relevance starts at another grade than 1, such as RR(rel=2)@10"
        )
    cutoff = int(found["cutoff"]) if found["cutoff"] else None
    relevant_grade = int(found["relevant"] or 1)
    if cutoff == 0 or relevant_grade == 0:
        raise ConfigError(f"measure {name!r}: cutoff and grade start at 1")
    if cutoff is None and NEEDS_CUTOFF[family]:
        raise ConfigError(f"measure {name!r} needs a cutoff, such as {family}@10")
    if family == "nDCG" and relevant_grade != 1:
        raise ConfigError(f"measure {name!r}: nDCG uses the grades themselves, leave (rel=) out")
    return Measure(family, cutoff, relevant_grade)
