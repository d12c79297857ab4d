import threading

import pytest

from xsweep.trainer.loop import Prefetcher


def test_the_next_step_is_made_before_it_is_asked_for():
    made, ready = [], threading.Event()

    def make(step):
        made.append(step)
        if step == 1:
            ready.set()
        return step * 10

    ahead = Prefetcher(make, steps=3)
    assert ahead.get(0) == 0
    assert ready.wait(10)
    assert [ahead.get(1), ahead.get(2)] == [10, 20]
    ahead.close()
    assert made == [0, 1, 2]


def test_a_step_out_of_turn_is_made_when_it_is_asked_for():
    ahead = Prefetcher(lambda step: step * 10, steps=100)
    assert [ahead.get(0), ahead.get(7), ahead.get(8)] == [0, 70, 80]
    ahead.close()


def test_what_goes_wrong_in_the_thread_is_raised_where_the_step_is_asked_for():
    def make(step):
        if step == 1:
            raise ValueError("unreadable")
        return step

    ahead = Prefetcher(make, steps=3)
    ahead.get(0)
    with pytest.raises(ValueError, match="unreadable"):
        ahead.get(1)
    ahead.close()
