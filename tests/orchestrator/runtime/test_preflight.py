"""What is wrong with a node is told in words, and on real nodes that are wrong it is found."""

import pytest

from xsweep.errors import SetupError
from xsweep.orchestrator.runtime.placement import Node
from xsweep.orchestrator.runtime.preflight import Preflight, expected, judge, runs_jobs
from xsweep.orchestrator.storage.store import Store

NOW_S = 1_800_000_000.0


def told(**changes):
    """What a fit node answers at `NOW_S`, with changes."""
    return {**expected(), "clock_s": NOW_S, **changes}


def packages(**changes):
    return {**expected()["packages"], **changes}


def verdict(answer, between_s=(NOW_S - 1, NOW_S + 1)):
    return judge("east", answer, expected(), between_s)


def test_a_node_like_this_one_is_fit():
    assert verdict(told()) is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (told(xsweep=None), "east has no xsweep"),
        (told(xsweep="0.0.1"), r"east has xsweep 0\.0\.1, here it is"),
        (told(packages=packages(torch=None)), "east lacks torch: pip install torch=="),
        (told(packages=packages(ray="2.1.0")), r"east has ray 2\.1\.0, here it is"),
        (told(python="3.9"), r"east has Python 3\.9"),
        (told(sees_probe=False), "east does not see the store"),
        (told(writes="Read-only file system"), r"cannot write the store \(Read-only"),
        (told(clock_s=NOW_S - 600), "east's clock is .* behind"),
        (told(clock_s=NOW_S + 600), "east's clock is .* ahead"),
    ],
)
def test_what_is_wrong_with_a_node_is_said_with_its_name_and_what_to_do(answer, words):
    import re

    assert re.search(words, verdict(answer))


def test_a_slow_answer_is_no_skew():
    assert verdict(told(clock_s=NOW_S - 40), (NOW_S - 80, NOW_S)) is None


def test_a_node_that_offers_nothing_is_not_asked(tmp_path):
    head = Node(id="a", name="head", resources={"memory": 1e9}, labels={})
    assert not runs_jobs(head)
    gate = Preflight(Store(tmp_path))
    assert gate.admit([head]) == []
    gate.require(lambda: [head])


def test_unfit_nodes_end_the_start_with_all_that_is_wrong(tmp_path):
    gate = Preflight(Store(tmp_path))
    gate.unfit = {"a": "east lacks torch", "b": "west does not see the store"}
    with pytest.raises(SetupError, match=r"east lacks torch\n  west does not see"):
        gate.require(list)
    assert SetupError.exit_code == 3
