import pytest

from xsweep.errors import ConfigError
from xsweep.evaluator.specs import Measure, parse_measure


def test_names_are_ir_measures_names() -> None:
    assert parse_measure("nDCG@10") == Measure("nDCG", 10, 1)
    assert parse_measure("RR(rel=2)@10") == Measure("RR", 10, 2)
    assert parse_measure("AP") == Measure("AP", None, 1)


@pytest.mark.parametrize("name", ["nDCG@10", "RR(rel=2)@10", "AP", "P(rel=3)@5", "Success@1"])
def test_a_name_survives_parsing(name: str) -> None:
    import ir_measures

    assert str(parse_measure(name)) == name == str(ir_measures.parse_measure(name))


def test_case_is_forgiven_and_a_grade_of_one_is_the_default() -> None:
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
def test_wrong_names_say_what_is_right(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_measure(name)
