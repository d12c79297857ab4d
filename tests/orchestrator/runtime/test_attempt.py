"""The outcome of an attempt."""

import pytest

from xsweep.orchestrator.runtime.attempt import decide

OUT_OF_MEMORY = {"state": "failed", "failure": "OOM_GPU", "reason": "out of memory"}
LOST_PEER = {"state": "failed", "failure": "NODE", "reason": "Connection closed by peer"}
UNKNOWN = {"state": "failed", "failure": "UNKNOWN", "reason": "RuntimeError"}
FINISHED = {"state": "finished", "failure": None, "reason": None}


@pytest.mark.parametrize(
    ("outcomes", "failure", "rank"),
    [
        ({0: LOST_PEER, 1: OUT_OF_MEMORY}, "OOM_GPU", 1),  # rank 0 only lost its peer
        ({0: UNKNOWN, 1: LOST_PEER}, "NODE", 1),  # a peer is gone: no program is wrong
        ({1: FINISHED, 0: UNKNOWN}, "UNKNOWN", 0),
    ],
)
def test_the_failure_of_a_gang_is_the_one_with_a_cause_of_its_own(outcomes, failure, rank):
    outcome = decide(outcomes, 2)
    assert outcome["failure"] == failure
    assert outcome["reason"].startswith(f"rank {rank} of 2: ")


def test_a_gang_has_finished_when_its_first_rank_has():
    assert decide({0: FINISHED}, 3) == FINISHED
