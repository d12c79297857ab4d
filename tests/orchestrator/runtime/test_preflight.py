"""Problems of nodes, and the messages about them."""

import pytest
import torch

from xsweep.errors import SetupError
from xsweep.orchestrator.runtime.placement import Node
from xsweep.orchestrator.runtime.preflight import (
    Preflight,
    _reporter,
    find_problem,
    own_report,
    runs_jobs,
)
from xsweep.orchestrator.storage.store import Store

NOW_S = 1_800_000_000.0


def report(**changes):
    """The report of a fit node at `NOW_S`, with changes."""
    return {**own_report(), "clock_s": NOW_S, **changes}


def versions(**changes):
    return {"versions": {**own_report()["versions"], **changes}}


def problem(node, asked_between_s=(NOW_S - 1, NOW_S + 1)):
    return find_problem("east", node, own_report(), asked_between_s)


def test_a_node_like_this_one_is_fit():
    assert problem(report()) is None


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (report(**versions(xsweep=None)), "east lacks xsweep: pip install xsweep=="),
        (report(**versions(xsweep="0.0.1")), r"east has xsweep 0\.0\.1, here it is"),
        (report(**versions(torch=None)), "east lacks torch: pip install torch=="),
        (report(**versions(ray="2.1.0")), r"east has ray 2\.1\.0, here it is"),
        (report(**versions(Python="3.9")), r"east has Python 3\.9"),
        (report(sees_probe=False), "east does not see the store"),
        (report(write_error="Read-only file system"), r"cannot write the store \(Read-only"),
        (report(clock_s=NOW_S - 600), "east's clock is .* behind"),
        (report(clock_s=NOW_S + 600), "east's clock is .* ahead"),
        (report(gpu_error="Found no NVIDIA driver"), "cannot use them: Found no NVIDIA driver. Ch"),
    ],
)
def test_a_problem_is_reported_with_the_nodes_name_and_a_remedy(node, message):
    import re

    assert re.search(message, problem(node))


def test_builds_of_one_pytorch_for_cpus_and_gpus_work_together(monkeypatch):
    cpu, gpu = (versions(torch=f"2.13.0{build}") for build in ("+cpu", ""))
    assert find_problem("east", report(**gpu), report(**cpu), (NOW_S - 1, NOW_S + 1)) is None


@pytest.mark.slow(3)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_node_that_offers_gpus_is_asked_for_them():
    words = _reporter()([], None, 2)["gpu_error"]
    assert "CUDA" in words or "NVIDIA" in words, words
    assert _reporter()([], None, 0)["gpu_error"] is None


def test_a_slow_answer_is_not_clock_skew():
    assert problem(report(clock_s=NOW_S - 40), (NOW_S - 80, NOW_S)) is None


def test_a_node_without_cpus_and_gpus_is_not_checked(tmp_path):
    head = Node(id="a", name="head", resources={"memory": 1e9}, labels={})
    assert not runs_jobs(head)
    preflight = Preflight(Store(tmp_path))
    assert preflight.admit([head]) == []
    preflight.require(lambda: [head])


def test_unfit_nodes_stop_the_start_with_all_problems(tmp_path):
    preflight = Preflight(Store(tmp_path))
    preflight.unfit = {"a": "east lacks torch", "b": "west does not see the store"}
    with pytest.raises(SetupError, match=r"east lacks torch\n  west does not see"):
        preflight.require(list)
    assert SetupError.exit_code == 3
