"""One fault in one sweep: inflict it, let the sweep end, and count what became of the jobs."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from tests.chaos import account, clock
from tests.cluster.faults import Scene
from tests.cluster.hosts import Host
from tests.cluster.site import Site, Sweep
from tests.waiting import wait_for
from xsweep.db import jobs, status
from xsweep.db.engine import connect
from xsweep.db.events import EventRow, history

TRAINS_S = 240.0
ENDS_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A line of the fault table."""

    fault: str
    happened: str
    recovery_s: float | None
    """From the fault until all jobs that it took were in hand again; None where it took none."""
    redone: int
    """Attempts beyond the first of each job."""
    lost: int
    twice: int
    problems: tuple[str, ...]
    """What must not be; empty where the trial has passed."""
    took_s: float


def calm_report(site: Site) -> str:
    """The report of the study when nothing goes wrong."""
    sweep = Sweep(site, "calm")
    controller = sweep.control(restart=False)
    code = controller.wait(ENDS_S)
    if code:
        raise RuntimeError(f"the undisturbed run ended with {code}:\n{controller.log.read_text()}")
    return sweep.report()


def try_fault(site: Site, fault: str, inflict: Callable[[Scene], str], calm: str) -> Trial:
    """Run the study once, inflict the fault in the middle of a training, and judge the outcome."""
    began_s = time.monotonic()
    sweep = Sweep(site, re.sub(r"\W+", "_", fault).lower())
    engine = connect(sweep.url)
    controller = sweep.control()
    happened, recovery_s, problems = "", None, []
    try:
        scene = _scene(site, sweep, engine, controller)
        at = clock(engine)
        happened = inflict(scene)
        wait_for(lambda: controller.process.poll() == 0, ENDS_S, "the sweep's end")
        recovery_s = _recovery_s(history(engine, latest=100_000), at)
        problems += _problems(sweep, engine, calm)
    except (TimeoutError, RuntimeError) as error:
        problems.append(str(error))
    finally:
        controller.stop()
        site.mend(crash=bool(problems))
    counted = account(engine, fault)
    redone = sum(max(job.token - 1, 0) for job in status.list_jobs(engine))
    engine.dispose()
    return Trial(
        fault=fault,
        happened=happened,
        recovery_s=recovery_s,
        redone=redone,
        lost=counted.lost,
        twice=counted.duplicates,
        problems=tuple(problems),
        took_s=time.monotonic() - began_s,
    )


def table(trials: list[Trial]) -> list[str]:
    """The fault table, as Markdown."""
    lines = [
        "| fault | what happened | recovery | jobs redone | lost | accepted twice |",
        "|---|---|---|---|---|---|",
    ]
    for each in trials:
        recovery = "none needed" if each.recovery_s is None else f"{each.recovery_s:.0f} s"
        figures = f"{recovery} | {each.redone} | {each.lost} | {each.twice}"
        lines.append(f"| {each.fault} | {each.happened or 'did not come to pass'} | {figures} |")
    return lines


def _scene(site: Site, sweep: Sweep, engine: Engine, controller) -> Scene:  # type: ignore[no-untyped-def]
    pattern = "jobs/train/*/*/attempt-1/checkpoints/step-*"
    checkpoint: Path = wait_for(
        lambda: next(sweep.store.glob(pattern), None), TRAINS_S, "a training's first checkpoint"
    )
    log = checkpoint.parent.parent.with_suffix(".log").read_text()
    found = re.search(r"\[job (\d+), token 1, pid (\d+)\]", log)
    assert found, log
    job_id, inner_pid = map(int, found.groups())
    held = next(each for each in jobs.running(engine) if each.job_id == job_id)
    host = next(each for each in (site.east, site.west) if each.name == held.node)
    return Scene(site, sweep, engine, controller, job_id, host, _outer_pid(host, inner_pid))


def _outer_pid(host: Host, inner: int) -> int:
    """The number under which this program sees a host's process."""
    for pid in host.processes():
        numbers = re.search(r"NSpid:\s(.*)", Path(f"/proc/{pid}/status").read_text())
        if numbers and int(numbers[1].split()[-1]) == inner:
            return pid
    raise RuntimeError(f"{host.name} has no process {inner}")


def _problems(sweep: Sweep, engine: Engine, calm: str) -> list[str]:
    problems = []
    checked = sweep.xsweep("db", "check", code=None)
    if "All invariants hold." not in checked:
        problems.append(f"xsweep db check: {checked}")
    if sweep.report() != calm:
        problems.append("the report differs from that of an undisturbed run")
    counted = account(engine, "")
    if counted.lost:
        problems.append(f"{counted.lost} jobs are not done")
    if counted.duplicates:
        problems.append(f"{counted.duplicates} results were accepted twice")
    return problems


def _recovery_s(events: list[EventRow], at: float) -> float | None:
    """Until the last of the jobs that were taken from somebody after `at` was in hand again."""
    waiting: dict[int, float] = {}
    last = None
    for event in events:
        if event.at < at or event.job_id is None:
            continue
        if event.kind in ("expired", "failed", "released"):
            waiting[event.job_id] = event.at
        elif event.kind == "adopted" or (
            event.kind == "started" and waiting.pop(event.job_id, None) is not None
        ):
            last = event.at
    return None if last is None else last - at
