"""What `status --watch` shows, at the size that a terminal has."""

from io import StringIO

from rich.console import Console, Group

from xsweep.db.events import FailedAttempt
from xsweep.db.status import JobRow, RunningJob, Summary, SweepStatus
from xsweep.orchestrator.monitoring.live import page


def shown(found: Summary, lines: int | None = None) -> str:
    console = Console(width=120, record=True, highlight=False, file=StringIO())
    console.print(Group(*page(found, lines)))
    return console.export_text()


def running(number: int) -> RunningJob:
    progress = {"done": 25, "total": 100, "loss": 0.5, "pairs_per_s": 10.5, "left_s": 90.0}
    return RunningJob(
        job_id=number,
        identity="0" * 64,
        kind="train",
        name=f"train L6 s{number}",
        token=1,
        owner="me",
        node="",
        log=None,
        progress={**progress, "node": f"node-{number}"},
        since_s=30.0,
        lease_left_s=60.0,
    )


def table(jobs: int, **more: object) -> Summary:
    counts = {"train": {"running": jobs, "done": 10}}
    cost_s = {"train": {"running": 10.0 * jobs, "done": 100.0}}
    sweep = SweepStatus(
        id=1, name="study", state="active", created_at=0.0, counts=counts, total=jobs + 10,
        cost_s=cost_s,
    )  # fmt: skip
    given = {"failures": [], "mean_s": {}, "controllers": [], "oldest_ready_s": None}
    found = given | {"at": 1000.0, "sweeps": [sweep], "running": list(map(running, range(jobs)))}
    return Summary(**(found | {"pace": {"train": 3.0}} | more))


def test_every_running_job_has_its_progress_speed_time_left_and_node() -> None:
    text = shown(table(2))
    row = next(line for line in text.splitlines() if "train L6 s1" in line)
    assert " ".join(row.split()) == "train L6 s1 25/100 25%, loss 0.5 10.5 30 s 90 s node-1"
    total = next(line for line in text.splitlines() if line.strip().startswith("total"))
    assert total.split() == ["total", "21.0"]
    # each is to take 120 s in all, of which 30 are over
    assert "study: 10 of 12 jobs done, about 90 s left" in text


def test_more_running_jobs_than_lines_are_counted() -> None:
    text = shown(table(162), lines=40)
    assert len(text.splitlines()) <= 40
    assert "running (162)" in text
    rows = sum("train L6 s" in line for line in text.splitlines())
    assert f"… and {162 - rows} more" in text
    assert rows > 10
    assert "1,701.0" in text, "the speed of all"
    assert shown(table(162)).count("train L6 s") == 162, "all of them where nobody watches"


def test_failures_and_attempts_that_are_tried_again_tell_their_reasons() -> None:
    lost = JobRow(
        job_id=1, identity="0" * 64, kind="train", name="train [x]", state="failed", token=1,
        priority=0, failure="NAN",
        reason="the loss of step 7 is nan\nTraceback", ended_at=900.0,
    )  # fmt: skip
    again = FailedAttempt(
        event=5, at=940.0, job_id=2, kind="train", name="train L6 s3", token=2, failure="NODE",
        reason="the node is gone", next="ready",
    )  # fmt: skip
    text = shown(table(1, failures=[lost], troubles=[again]))
    assert "failed train [x]: NAN: the loss of step 7 is nan" in text
    assert "Traceback" not in text
    assert "retried train L6 s3: attempt 2 60 s ago: NODE: the node is gone" in text


def test_a_job_that_waits_while_nothing_runs_is_worth_a_line() -> None:
    assert "The oldest ready job has waited" not in shown(table(1, oldest_ready_s=600.0))
