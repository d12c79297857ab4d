"""What fits where, which nodes are left alone, and what is waited for: arithmetic, without Ray."""

import pytest
import ray

from xsweep.db.status import PendingDemand
from xsweep.orchestrator.runtime.autoscale import Demand, within
from xsweep.orchestrator.runtime.placement import (
    Node,
    Share,
    Strikes,
    choose,
    count_fits,
    free_of,
    infeasible_reason,
    request_of,
)


def node(name, gpus=0, cpus=4, **labels):
    return Node(id=name, name=name, resources={"CPU": cpus, "GPU": gpus}, labels=labels)


EAST, WEST, NORTH = node("east", 2), node("west", 4, zone="eu"), node("north", 0)
NODES = [EAST, WEST, NORTH]


def idle(*taken):
    return free_of(NODES, list(taken))


def names(found):
    return [each.name for each in found] if found else None


def test_a_request_is_what_a_job_stores_under_rays_names():
    request = request_of({"cpus": 2, "gpus": 0.5, "memory_bytes": 8e9, "labels": {"zone": "eu"}})
    assert request.resources == {"CPU": 2, "GPU": 0.5, "memory": 8e9}
    assert str(request) == "2 CPU, 0.5 GPU, 8e+09 memory on a node with zone=eu"
    assert request_of({}).resources == {"CPU": 1}


def test_work_goes_to_the_fullest_node_that_has_room_so_that_gangs_find_theirs():
    assert names(choose(request_of({"cpus": 1}), NODES, idle())) == ["north"]
    assert names(choose(request_of({"cpus": 1, "gpus": 1}), NODES, idle())) == ["east"]
    one_left = idle(Share("east", {"GPU": 1.5}))
    assert names(choose(request_of({"gpus": 0.5}), NODES, one_left)) == ["east"]
    assert names(choose(request_of({"gpus": 1}), NODES, one_left)) == ["west"]


def test_ranks_are_placed_all_or_none():
    four = request_of({"gpus": 1, "cpus": 1, "ranks": 4})
    assert names(choose(four, NODES, idle())) == ["east", "east", "west", "west"]
    assert choose(four, NODES, idle(Share("west", {"GPU": 3}))) is None
    apart = request_of({"gpus": 1, "ranks": 2, "spread": True})
    assert names(choose(apart, NODES, idle())) == ["east", "west"]
    assert choose(request_of({"gpus": 1, "ranks": 3, "spread": True}), NODES, idle()) is None


@pytest.mark.parametrize(
    ("asked", "taken", "count"),
    [
        ({"cpus": 1}, [], 12),  # three nodes of 4
        ({"cpus": 3}, [], 3),  # one CPU of each node is left over
        ({"cpus": 1, "gpus": 0.3}, [], 8),  # east and west by their CPUs, north has no GPU
        ({"cpus": 1, "gpus": 1}, [Share("west", {"CPU": 4, "GPU": 1})], 2),
        ({"cpus": 1, "gpus": 0.3}, [Share("east", {"GPU": 1.7}), Share("west", {"CPU": 4})], 1),
        ({"cpus": 1, "gpus": 1, "ranks": 4}, [], 1),  # 2 and 4 places, in fours
        ({"cpus": 5}, [], 0),
        ({"cpus": 1}, [Share("north", {"CPU": 6})], 8),  # a node of which too much was given
    ],
)
def test_as_many_jobs_are_claimed_as_the_free_resources_would_hold(asked, taken, count):
    assert count_fits(request_of(asked), idle(*taken)) == count


def test_labels_and_nodes_to_avoid_are_heeded():
    assert names(choose(request_of({"labels": {"zone": "us|eu"}}), NODES, idle())) == ["west"]
    assert choose(request_of({"labels": {"zone": "us"}}), NODES, idle()) is None
    assert names(choose(request_of({}), NODES, idle(), avoid={"north"})) == ["east"]


def test_a_worker_of_unknown_place_counts_everywhere():
    assert choose(request_of({"gpus": 4}), NODES, idle(Share(None, {"GPU": 1}))) is None


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"gpus": 8}, "asks for 1 CPU, 8 GPU; the largest node has 4 CPU, 4 GPU"),
        ({"gpus": 1, "ranks": 7}, "asks for 7 times 1 CPU, 1 GPU; the largest node has"),
        ({"labels": {"gpu": "H100"}}, r"no node has these labels (there are: zone=eu)"),
    ],
)
def test_what_can_never_be_met_is_said_with_what_is_missing(asked, words):
    assert words in infeasible_reason(request_of(asked), NODES)


def test_where_no_node_runs_jobs_that_is_said():
    assert infeasible_reason(request_of({}), []) == (
        "asks for 1 CPU, and there is no node that runs jobs: add one"
    )


def test_what_fits_an_idle_cluster_may_be_waited_for():
    assert infeasible_reason(request_of({"gpus": 1, "ranks": 6}), NODES) is None


def test_a_node_is_left_alone_after_three_jobs_in_a_row_failed_there():
    strikes = Strikes()
    assert [strikes.count("east", job, "NODE") for job in (1, 1, 2)] == [False] * 3
    assert strikes.count("east", 3, "INFRA"), "the third different job"
    assert strikes.avoid(NODES) == {"east"}
    strikes.count("east", 4, None)
    assert strikes.avoid(NODES) == set(), "a job that ended well forgives"


def test_what_is_the_jobs_own_fault_strikes_no_node_and_the_last_node_is_never_left_alone():
    strikes = Strikes()
    for job in range(5):
        strikes.count("east", job, "CONFIG")
        strikes.count("west", job, "NODE")
    assert strikes.avoid([EAST, WEST]) == {"west"}
    assert strikes.avoid([WEST]) == set()


def test_a_node_that_does_not_answer_rests_for_a_while():
    strikes = Strikes()
    strikes.rest("east")
    assert strikes.avoid(NODES) == {"east"}
    assert strikes.avoid([EAST]) == set(), "there is no other"


def test_an_unmet_job_is_not_claimed_again_until_the_nodes_change_or_patience_ends():
    demand = Demand(patience_s=1000)
    request = request_of({"gpus": 8})
    demand.waiting(NODES)
    assert not demand.unmet(7, request, "asks for 8 GPU")
    assert demand.waiting(NODES) == {7}
    assert demand.told() == "for a node, with 1 job: one asks for 8 GPU"
    assert demand.age_s < 100
    assert demand.waiting([*NODES, node("south", 8)]) == set()
    demand.met(7)
    assert demand.told() is None


def test_the_autoscaler_is_told_of_what_may_run_at_once_under_the_limits():
    wants = [
        PendingDemand("train", {"gpus": 1}, 5),
        PendingDemand("evaluate", {"gpus": 0.5, "labels": {"zone": "eu|us"}}, 2),
    ]
    limits, running = {"train": 4}, {"train": 1, "evaluate": 7}
    asked = [str(each) for each in within(limits, running, wants)]
    assert asked == ["1 CPU, 1 GPU"] * 3 + ["1 CPU, 0.5 GPU on a node with zone=eu|us"] * 2
    assert list(within({"train": 1}, running, wants[:1])) == []
    assert len(list(within({}, {}, [PendingDemand("evaluate", {}, 3564)]))) == 1000


def test_the_autoscaler_hears_of_all_that_would_run_and_of_nothing_when_nothing_waits(monkeypatch):
    heard = []
    monkeypatch.setattr(ray.autoscaler.sdk, "request_resources", lambda **said: heard.append(said))
    held, wanted = request_of({"gpus": 1}), request_of({"ranks": 2, "labels": {"zone": "eu|us"}})
    demand = Demand(patience_s=0, scales=True)
    demand.ask([held], [wanted])
    demand.ask([held], [wanted])
    demand.ask([held], [])
    assert heard == [
        {
            "bundles": [{"CPU": 1, "GPU": 1}, {"CPU": 1}, {"CPU": 1}],
            "bundle_label_selectors": [{}, {"zone": "in(eu,us)"}, {"zone": "in(eu,us)"}],
        },
        {"bundles": [], "bundle_label_selectors": None},
    ]
    Demand(patience_s=0).ask([held], [wanted])
    assert len(heard) == 2, "a cluster of our own has no autoscaler"


def test_without_patience_an_unmet_job_is_refused_at_once():
    assert Demand(patience_s=0).unmet(7, request_of({"gpus": 8}), "asks for 8 GPU")
