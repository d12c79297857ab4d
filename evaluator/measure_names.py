"""Names of measures as ir_measures writes them: nDCG@10, RR(rel=2)@10, AP, R@100, ..."""

import re
from typing import NamedTuple

from xsweep import ConfigError

FAMILIES = {
    "nDCG": "optional",
    "RR": "optional",
    "AP": "optional",
    "P": "needed",
    "R": "needed",
    "Success": "needed",
}
"""Each measure and whether it needs a cutoff."""

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


def parse_measure(name: str) -> Measure:
    """The measure that a name stands for: `RR(rel=2)@10` is ("RR", 10, 2).

    Raises ConfigError for a name that is none.
    """
    found = _NAME.fullmatch(name.strip())
    by_lower_name = {family.lower(): family for family in FAMILIES}
    family = by_lower_name.get(found["family"].lower()) if found else None
    if not found or family is None:
        raise ConfigError(
            f"unknown measure {name!r}: use one of {', '.join(FAMILIES)} with a cutoff and, "
            "where relevance starts at another grade than 1, like RR(rel=2)@10"
        )
    cutoff = int(found["cutoff"]) if found["cutoff"] else None
    relevant_grade = int(found["relevant"] or 1)
    if cutoff == 0 or relevant_grade == 0:
        raise ConfigError(f"measure {name!r}: cutoff and grade start at 1")
    if cutoff is None and FAMILIES[family] == "needed":
        raise ConfigError(f"measure {name!r} needs a cutoff, such as {family}@10")
    if family == "nDCG" and relevant_grade != 1:
        raise ConfigError(f"measure {name!r}: nDCG uses the grades themselves, leave (rel=) out")
    return Measure(family, cutoff, relevant_grade)
