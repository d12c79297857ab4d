"""Jobs that no node can run now: when they are claimed again, requested, and refused."""

import ray

from xsweep.db.status import PendingDemand
from xsweep.orchestrator.runtime.autoscale import Demand, within
from xsweep.orchestrator.runtime.placement import Node, request_of


def node(name):
    return Node(id=name, name=name, resources={"CPU": 4}, labels={})


NODES = [node("east"), node("west")]


def test_an_unmet_job_is_not_claimed_again_until_the_nodes_change():
    demand = Demand(patience_s=1000)
    demand.waiting(NODES)
    assert demand.wait(7, "asks for 8 GPU")
    assert demand.waiting(NODES) == {7}
    assert demand.summary() == "for a node, with 1 job: one asks for 8 GPU"
    assert demand.age_s < 100
    assert demand.waiting([*NODES, node("south")]) == set()
    demand.satisfied(7)
    assert demand.summary() is None


def test_without_patience_an_unmet_job_is_refused_at_once():
    assert not Demand(patience_s=0).wait(7, "asks for 8 GPU")


def test_pending_requests_respect_the_limits_of_each_kind():
    pending = [
        PendingDemand("train", {"gpus": 1}, 5),
        PendingDemand("evaluate", {"gpus": 0.5, "labels": {"zone": "eu|us"}}, 2),
    ]
    limits, running = {"train": 4}, {"train": 1, "evaluate": 7}
    requests = [str(each) for each in within(limits, running, pending)]
    assert requests == ["1 CPU, 1 GPU"] * 3 + ["1 CPU, 0.5 GPU on a node with zone=eu|us"] * 2
    assert list(within({"train": 1}, running, pending[:1])) == []
    assert len(list(within({}, {}, [PendingDemand("evaluate", {}, 3564)]))) == 1000


def test_the_autoscaler_gets_all_requests_while_a_job_is_pending_and_none_otherwise(monkeypatch):
    calls = []
    monkeypatch.setattr(ray.autoscaler.sdk, "request_resources", lambda **call: calls.append(call))
    running, pending = (
        request_of({"gpus": 1}),
        request_of({"ranks": 2, "labels": {"zone": "eu|us"}}),
    )
    demand = Demand(patience_s=0, scales=True)
    demand.request([running], [pending])
    demand.request([running], [pending])
    demand.request([running], [])
    assert calls == [
        {
            "bundles": [{"CPU": 1, "GPU": 1}, {"CPU": 1}, {"CPU": 1}],
            "bundle_label_selectors": [{}, {"zone": "in(eu,us)"}, {"zone": "in(eu,us)"}],
        },
        {"bundles": [], "bundle_label_selectors": None},
    ]
    Demand(patience_s=0).request([running], [pending])
    assert len(calls) == 2, "a cluster started here has no autoscaler"
