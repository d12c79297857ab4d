"""Matching requests to nodes, and excluding nodes: arithmetic, without Ray."""

import pytest

from xsweep.orchestrator.runtime.placement import (
    Node,
    NodeExclusions,
    choose_nodes,
    count_fits,
    free_resources,
    infeasible_reason,
    request_of,
)


def node(name, gpus=0, cpus=4, **labels):
    return Node(id=name, name=name, resources={"CPU": cpus, "GPU": gpus}, labels=labels)


EAST, WEST, NORTH = node("east", 2), node("west", 4, zone="eu"), node("north", 0)
NODES = [EAST, WEST, NORTH]


def free(*held):
    return free_resources(NODES, held)


def names(found):
    return [each.name for each in found] if found else None


def test_a_request_holds_a_jobs_resources_by_rays_names():
    request = request_of({"cpus": 2, "gpus": 0.5, "memory_bytes": 8e9, "labels": {"zone": "eu"}})
    assert request.resources == {"CPU": 2, "GPU": 0.5, "memory": 8e9}
    assert str(request) == "2 CPU, 0.5 GPU, 8e+09 memory on a node with zone=eu"
    assert request_of({}).resources == {"CPU": 1}


def test_a_job_goes_to_the_fullest_node_that_has_room_and_leaves_room_for_gangs():
    assert names(choose_nodes(request_of({"cpus": 1}), NODES, free())) == ["north"]
    assert names(choose_nodes(request_of({"cpus": 1, "gpus": 1}), NODES, free())) == ["east"]
    half_left = free(("east", {"GPU": 1.5}))
    assert names(choose_nodes(request_of({"gpus": 0.5}), NODES, half_left)) == ["east"]
    assert names(choose_nodes(request_of({"gpus": 1}), NODES, half_left)) == ["west"]


def test_all_ranks_are_placed_or_none():
    four = request_of({"gpus": 1, "cpus": 1, "ranks": 4})
    assert names(choose_nodes(four, NODES, free())) == ["east", "east", "west", "west"]
    assert choose_nodes(four, NODES, free(("west", {"GPU": 3}))) is None
    spread = request_of({"gpus": 1, "ranks": 2, "spread": True})
    assert names(choose_nodes(spread, NODES, free())) == ["east", "west"]
    assert choose_nodes(request_of({"gpus": 1, "ranks": 3, "spread": True}), NODES, free()) is None


@pytest.mark.parametrize(
    ("stored", "held", "count"),
    [
        ({"cpus": 1}, [], 12),  # three nodes with 4
        ({"cpus": 3}, [], 3),  # one CPU of each node is left over
        ({"cpus": 1, "gpus": 0.3}, [], 8),  # east and west by their CPUs, north has no GPU
        ({"cpus": 1, "gpus": 1}, [("west", {"CPU": 4, "GPU": 1})], 2),
        ({"cpus": 1, "gpus": 0.3}, [("east", {"GPU": 1.7}), ("west", {"CPU": 4})], 1),
        ({"cpus": 1, "gpus": 1, "ranks": 4}, [], 1),  # 2 and 4 places, in fours
        ({"cpus": 5}, [], 0),
        ({"cpus": 1}, [("north", {"CPU": 6})], 8),  # a node that is overcommitted
    ],
)
def test_the_number_of_jobs_that_fit_is_counted_over_all_nodes(stored, held, count):
    assert count_fits(request_of(stored), free(*held)) == count


def test_labels_and_excluded_nodes_are_respected():
    assert names(choose_nodes(request_of({"labels": {"zone": "us|eu"}}), NODES, free())) == ["west"]
    assert choose_nodes(request_of({"labels": {"zone": "us"}}), NODES, free()) is None
    assert names(choose_nodes(request_of({}), NODES, free(), excluded={"north"})) == ["east"]


def test_a_worker_on_an_unknown_node_counts_on_every_node():
    assert choose_nodes(request_of({"gpus": 4}), NODES, free((None, {"GPU": 1}))) is None


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        ({"gpus": 8}, "asks for 1 CPU, 8 GPU; the largest node has 4 CPU, 4 GPU"),
        ({"gpus": 1, "ranks": 7}, "asks for 7 times 1 CPU, 1 GPU; the largest node has"),
        ({"labels": {"gpu": "H100"}}, r"no node has these labels (there are: zone=eu)"),
    ],
)
def test_an_infeasible_request_is_explained(stored, reason):
    assert reason in infeasible_reason(request_of(stored), NODES)


def test_a_cluster_without_a_node_for_jobs_is_explained():
    assert infeasible_reason(request_of({}), []) == (
        "asks for 1 CPU, and there is no node that runs jobs: add one"
    )


def test_a_request_that_fits_the_idle_cluster_is_feasible():
    assert infeasible_reason(request_of({"gpus": 1, "ranks": 6}), NODES) is None


def test_a_node_is_excluded_after_three_jobs_in_a_row_failed_there():
    exclusions = NodeExclusions()
    assert [exclusions.record("east", job, "NODE") for job in (1, 1, 2)] == [False] * 3
    assert exclusions.record("east", 3, "INFRA"), "the third different job"
    assert exclusions.excluded(NODES) == {"east"}
    exclusions.record("east", 4, None)
    assert exclusions.excluded(NODES) == set(), "a success clears the record"


def test_a_jobs_own_failures_exclude_no_node_and_the_last_node_is_never_excluded():
    exclusions = NodeExclusions()
    for job in range(5):
        exclusions.record("east", job, "CONFIG")
        exclusions.record("west", job, "NODE")
    assert exclusions.excluded([EAST, WEST]) == {"west"}
    assert exclusions.excluded([WEST]) == set()


def test_a_node_to_avoid_is_excluded_for_a_while_if_there_is_another():
    exclusions = NodeExclusions()
    exclusions.avoid("east")
    assert exclusions.excluded(NODES) == {"east"}
    assert exclusions.excluded([EAST]) == set(), "there is no other"
