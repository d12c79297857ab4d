"""The time left: hand-computed cases, and a real run replayed."""

import pytest

from xsweep.db.status import RunningJob, Summary, SweepStatus
from xsweep.orchestrator.forecast.eta import eta_s


def sweep_of(*rows: tuple[str, str, float]) -> SweepStatus:
    """A sweep of jobs: kind, state, expected seconds."""
    counts: dict[str, dict[str, int]] = {}
    cost_s: dict[str, dict[str, float]] = {}
    for kind, state, expected_s in rows:
        of_kind, cost_of_kind = counts.setdefault(kind, {}), cost_s.setdefault(kind, {})
        of_kind[state] = of_kind.get(state, 0) + 1
        cost_of_kind[state] = cost_of_kind.get(state, 0.0) + expected_s
    return SweepStatus(
        id=1, name="s", state="active", created_at=0, counts=counts, total=len(rows), cost_s=cost_s
    )


def running_job(kind: str, since_s: float, cost_s: float, **progress: object) -> RunningJob:
    return RunningJob(
        job_id=1, identity="", kind=kind, name="t", token=1, owner="o", node=None, log=None,
        progress=progress or None, since_s=since_s, lease_left_s=1, cost_s=cost_s,
    )  # fmt: skip


def summary_of(pace: dict[str, float], *running: RunningJob) -> Summary:
    return Summary(
        at=0, sweeps=[], running=list(running), failures=[], mean_s={}, controllers=[],
        oldest_ready_s=None, pace=pace,
    )  # fmt: skip


def test_before_anything_is_measured_the_forecast_is_shared_by_the_places() -> None:
    sweep = sweep_of(*[("train", "waiting", 100.0)] * 4, ("prepare", "running", 10.0))
    places = {"train": 2, "prepare": 2}
    # 4 trainings of 100 s on 2 places, then 6 s of the only preparation
    found = summary_of({}, running_job("prepare", 4.0, 10.0, places=places))
    assert eta_s(sweep, found) == pytest.approx(200 + 6)


def test_one_long_job_takes_its_time_however_many_places_there_are() -> None:
    sweep = sweep_of(("train", "ready", 500.0), ("train", "running", 60.0))
    found = summary_of({}, running_job("train", 30.0, 60.0, done=1, total=2, places={"train": 8}))
    assert eta_s(sweep, found) == pytest.approx(500)


def test_results_and_running_jobs_correct_the_forecast_by_what_they_stand_for() -> None:
    sweep = sweep_of(("train", "done", 240.0), ("train", "ready", 100.0))
    # results took twice as long as expected: 480 s and 20 s for 260 s, and 480 s and 20 times that
    assert eta_s(sweep, summary_of({"train": 2.0})) == 100 * (480 + 20 * 500 / 260) / 260
    # earlier sweeps are believed where this one has no results
    fresh = sweep_of(("train", "ready", 100.0))
    assert eta_s(fresh, summary_of({"train": 2.0})) == pytest.approx(200)
    half = running_job("train", 60.0, 200.0, done=1, total=2)
    sweep = sweep_of(("train", "running", 200.0), ("train", "ready", 80.0))
    # all kinds: (60 + 20) / (100 + 20) = 2/3; this one (60 + 20 * 2/3) / (100 + 20) = 11/18
    pace = 11 / 18
    left_s = 0.5 * (200 * pace - 60) + 0.5 * (120 - 60)
    assert eta_s(sweep, summary_of({}, half)) == pytest.approx(80 * pace + left_s)
    # a training that says what is left knows better: of its 60 s, 20 were its start
    telling = running_job("train", 60.0, 200.0, done=1, total=2, left_s=40.0)
    pace = (60 + 20 * 80 / 140) / (120 + 20)
    assert eta_s(sweep, summary_of({}, telling)) == pytest.approx(80 * pace + 40)


def test_a_finished_sweep_has_no_time_left() -> None:
    assert eta_s(sweep_of(("train", "done", 40.0)), summary_of({})) == 0.0


QUICKSTART = """
prepare 65.2 0.0 9.6, prepare 9.0 0.1 9.2, prepare 6.1 9.2 10.8
teach 65.6 9.6 34.0, train 373.5 10.8 276.9, train 119.9 34.0 117.1
train 67.5 117.1 163.2, train 67.5 163.2 207.9, train 67.5 207.9 252.5
train 67.5 252.5 295.7, train 67.5 277.0 320.6, train 67.5 295.7 339.2
prepare 10.4 320.6 327.2, evaluate 23.8 327.2 340.5, evaluate 23.8 339.2 365.7
evaluate 23.8 340.5 362.5, evaluate 14.4 362.5 372.2, evaluate 14.4 365.7 375.9
evaluate 14.4 372.2 381.5, evaluate 14.4 375.9 385.8, evaluate 14.4 381.5 391.0
evaluate 14.4 385.8 395.7, evaluate 1.0 391.0 391.1
"""
"""The quick start on 2 cores of an AMD EPYC, 2026-11-27: kind, expected seconds, start, end."""


@pytest.mark.parametrize("speed", [0.5, 1.0, 2.0])
def test_estimates_of_a_real_run_are_right_after_a_twentieth_of_its_time(speed: float) -> None:
    # at other speeds the same run is on a machine that the forecast takes for another
    words = QUICKSTART.replace(",", "").split()
    rows = [
        (kind, float(cost_s), float(began_s) / speed, float(ended_s) / speed)
        for kind, cost_s, began_s, ended_s in zip(*[iter(words)] * 4, strict=True)
    ]
    whole_s = max(ended_s for *_, ended_s in rows)
    ratios = {}
    for percent in range(0, 96):
        at_s = whole_s * percent / 100
        states, took_s, done_s, running = [], {}, {}, []
        for kind, cost_s, began_s, ended_s in rows:
            state = "done" if ended_s <= at_s else "running" if began_s <= at_s else "waiting"
            states.append((kind, state, cost_s))
            if state == "done":
                took_s[kind] = took_s.get(kind, 0.0) + ended_s - began_s
                done_s[kind] = done_s.get(kind, 0.0) + cost_s
            elif state == "running":
                since_s, progress = at_s - began_s, {}
                if since_s > 5:
                    progress = {"done": since_s, "total": ended_s - began_s}
                    progress |= {"left_s": ended_s - at_s} if kind == "train" else {}
                places = dict.fromkeys(("prepare", "teach", "train", "evaluate"), 2)
                running.append(running_job(kind, since_s, cost_s, places=places, **progress))
        pace = {kind: took_s[kind] / done_s[kind] for kind in took_s}
        found = summary_of(pace, *running)
        ratios[percent] = eta_s(sweep_of(*states), found) / (whole_s - at_s)
    assert all(1 / 1.5 < ratio < 1.5 for percent, ratio in ratios.items() if percent >= 5), (
        "\n".join(f"{p} {r:.2f}" for p, r in ratios.items())
    )
    assert 1 / 3 < ratios[0] / speed < 3
