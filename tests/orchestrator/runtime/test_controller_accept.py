import json

import pytest
from finished import OWNER, submit_small, write_result

from xsweep.db import jobs
from xsweep.db.check import check
from xsweep.db.events import history
from xsweep.errors import DataError
from xsweep.evaluator.data.files import write_manifest
from xsweep.orchestrator.runtime.controller import Controller, accept_all
from xsweep.orchestrator.storage.store import Store


@pytest.fixture
def three(tmp_path):
    """A database, a store, and three claimed jobs whose folders are finished."""
    engine = submit_small(tmp_path)
    claims = jobs.claim(engine, owner=OWNER, limit=3, lease_s=60)
    for claim in claims:
        write_result(tmp_path / "store" / str(claim.job_id), claim)
    yield engine, tmp_path / "store", claims
    engine.dispose()


def finished(claims):
    return [(claim.lease, str(claim.job_id)) for claim in claims]


def test_no_job_starts_while_the_store_cannot_be_written(three, tmp_path, caplog):
    engine, store, (claim, *_) = three
    controller = Controller(engine, Store(store))
    store.rename(tmp_path / "kept")
    store.touch()  # no folder can be made here
    assert controller._store_works(), "it is asked after a failure"
    controller._fail(claim, "INFRA", "OSError: [Errno 30] Read-only file system")
    caplog.clear()
    assert not controller._store_works()
    assert not controller._store_works()
    assert [record.message for record in caplog.records] == [
        f"waiting   store {store} cannot be written (File exists): make room, or choose another "
        "folder with --store or XSWEEP_STORE"
    ]
    store.unlink()
    assert controller._store_works()


def test_folders_that_are_finished_together_are_accepted_in_one_transaction(three):
    engine, store, claims = three
    assert accept_all(engine, Store(store), finished(claims)) == [True] * 3
    accepted = [event.at for event in history(engine) if event.kind == "accepted"]
    assert len(accepted) == 3
    assert check(engine) == []


def test_a_damaged_folder_is_refused_and_holds_up_no_other(three):
    engine, store, claims = three
    (store / str(claims[1].job_id) / "summary.json").write_text("{}")
    first, second, third = accept_all(engine, Store(store), finished(claims))
    assert (first, third) == (True, True)
    assert isinstance(second, DataError)
    assert "summary.json" in str(second)
    assert [held.job_id for held in jobs.running(engine)] == [claims[1].job_id]


def test_scores_that_are_no_numbers_are_refused_and_hold_up_no_other(three):
    engine, store, claims = three
    folder = store / str(claims[0].job_id)
    (folder / "per_query.json").write_text(json.dumps({"nDCG@10": {"q1": float("nan")}}))
    write_manifest(folder)
    first, *others = accept_all(engine, Store(store), finished(claims))
    assert isinstance(first, DataError)
    assert others == [True, True]


def test_a_job_whose_lease_is_lost_is_refused_and_holds_up_no_other(three):
    engine, store, claims = three
    assert jobs.adopt(engine, claims[2], owner="bob", lease_s=60)
    assert accept_all(engine, Store(store), finished(claims)) == [True, True, False]


def test_a_folder_that_cannot_be_read_is_refused_and_holds_up_no_other(three):
    engine, store, claims = three
    manifest = store / str(claims[1].job_id) / "manifest.json"
    manifest.unlink()
    manifest.mkdir()
    first, second, third = accept_all(engine, Store(store), finished(claims))
    assert (first, third) == (True, True)
    assert f"{manifest}: Is a directory" in str(second)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", "[1]"),
        ("provenance.json", "null"),
        ("per_query.json", '["nDCG@10"]'),
        ("per_query.json", '{"nDCG@10": [0.5]}'),
        ("per_query.json", '{"nDCG@10": {"q1": "high"}}'),
    ],
)
def test_a_folder_whose_files_have_another_shape_is_refused(three, name, content):
    engine, store, claims = three
    folder = store / str(claims[0].job_id)
    (folder / name).write_text(content)
    write_manifest(folder)
    first, *others = accept_all(engine, Store(store), finished(claims))
    assert isinstance(first, DataError), first
    assert others == [True, True]
