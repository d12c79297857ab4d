"""Garbage: superseded attempts and old checkpoints are removed, everything needed is kept."""

from pathlib import Path

import pytest
from finished import OWNER, finish_one, run_all, submit_small
from reports import report_text
from sqlalchemy import Engine

from xsweep.db import jobs
from xsweep.db.results import load_folders
from xsweep.orchestrator.storage.store import Store, attempt_folder, find_garbage


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return submit_small(tmp_path)


def begin(engine: Engine, store: Path, *steps: int) -> tuple[jobs.Claim, Path]:
    """Start an attempt with a log and a checkpoint after each of these steps."""
    (claim,) = jobs.claim(engine, owner=OWNER, limit=1, lease_s=60)
    folder = attempt_folder(claim.kind, claim.identity, claim.token)
    place = jobs.Place(actor="a", node="n", folder=folder, log=f"{folder}.log")
    jobs.mark_started(engine, {claim.lease: place})
    for step in steps:
        (store / folder / "checkpoints" / f"step-{step}").mkdir(parents=True)
        (store / folder / "checkpoints" / f"step-{step}" / "weights").write_bytes(b"x" * 1_000)
    (store / f"{folder}.log").write_text("what happened")
    return claim, store / folder


def give_up(engine: Engine, claim: jobs.Claim) -> None:
    assert jobs.fail(engine, claim.lease, failure="HANG", reason="hung", retry_after_s=0)


def garbage(engine: Engine, store: Path, older_than_s: float = 0) -> list:
    return find_garbage(Store(store), load_folders(engine), older_than_s=older_than_s)


def test_a_done_job_keeps_its_accepted_attempt_and_all_logs(engine: Engine, store: Path) -> None:
    claim, lost = begin(engine, store, 10, 20)
    give_up(engine, claim)
    (again,) = jobs.claim(engine, owner=OWNER, limit=1, lease_s=60)
    assert again.job_id == claim.job_id
    kept = finish_one(engine, store, again)
    found = garbage(engine, store)
    assert [(each.folder, each.size_bytes >= 2_000) for each in found] == [
        (lost.relative_to(store).as_posix(), True)
    ]
    assert "was accepted" in found[0].why
    Store(store).remove(found[0].folder)
    assert not lost.exists()
    assert (store / f"{lost.relative_to(store)}.log").exists()
    assert (store / kept / "manifest.json").exists()
    assert garbage(engine, store) == []


def test_an_unfinished_job_keeps_its_two_furthest_checkpoints(engine: Engine, store: Path) -> None:
    claim, first = begin(engine, store, 10, 20)
    give_up(engine, claim)
    claim, second = begin(engine, store, 30)
    give_up(engine, claim)
    assert [store / each.folder for each in garbage(engine, store)] == [
        first / "checkpoints" / "step-10"
    ]
    assert (second / "checkpoints" / "step-30").exists()


def test_running_attempts_and_recent_files_are_kept(engine: Engine, store: Path) -> None:
    claim, _ = begin(engine, store, 10, 20, 30)
    assert garbage(engine, store) == []
    give_up(engine, claim)
    assert garbage(engine, store, older_than_s=60) == []
    assert len(garbage(engine, store)) == 1


def test_files_that_a_report_or_a_child_needs_are_not_garbage(engine: Engine, store: Path) -> None:
    run_all(engine, store)
    stranger = store / "jobs" / "train" / "ab" / "ab" / "attempt-1"
    stranger.mkdir(parents=True)
    before = report_text(engine, "small")
    assert garbage(engine, store) == []
    assert report_text(engine, "small") == before
    assert stranger.exists()
