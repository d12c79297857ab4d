import ir_measures
import pytest

from xsweep.errors import ConfigError
from xsweep.evaluator.measure_names import Measure, parse_measure


def test_measures_have_ir_measures_names() -> None:
    assert parse_measure("nDCG@10") == Measure("nDCG", 10, 1)
    assert parse_measure("RR(rel=2)@10") == Measure("RR", 10, 2)
    assert parse_measure("AP") == Measure("AP", None, 1)


@pytest.mark.parametrize("name", ["nDCG@10", "RR(rel=2)@10", "AP", "P(rel=3)@5", "Success@1"])
def test_a_measures_name_survives_parsing(name: str) -> None:
    assert str(parse_measure(name)) == name == str(ir_measures.parse_measure(name))


def test_a_measures_case_is_ignored_and_its_default_grade_is_one() -> None:
    assert str(parse_measure(" ndcg@10 ")) == "nDCG@10"
    assert str(parse_measure("rr(rel=1)@10")) == "RR@10"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MRR@10", "unknown measure"),
        ("nDCG@ten", "unknown measure"),
        ("", "unknown measure"),
        ("P", "needs a cutoff"),
        ("nDCG(rel=2)@10", "grades themselves"),
        ("RR@0", "start at 1"),
        ("RR(rel=0)", "start at 1"),
    ],
)
def test_unknown_measures_are_config_errors(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_measure(name)
