"""The store in an object store: moto's server speaks S3; two hosts are two folders of copies."""

import json
from pathlib import Path

import fsspec
import pytest
from object_store import serve

from xsweep.errors import DataError, SetupError
from xsweep.evaluator.data.files import read_manifest, write_manifest
from xsweep.orchestrator.storage.store import Store, Uploads, open_remote, open_store

FOLDER, LOG = "jobs/train/ab/abc/attempt-1", "jobs/train/ab/abc/attempt-1.log"


@pytest.fixture(scope="module")
def server():
    open_remote.cache_clear()
    yield from serve()
    open_remote.cache_clear()


@pytest.fixture
def bucket(server: str, request: pytest.FixtureRequest) -> str:
    """A store of the test's own."""
    return f"{server}/{request.node.name}"


@pytest.fixture
def hosts(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Store]:
    """One store as two hosts see it."""
    stores = []
    for name in ("one", "two"):
        monkeypatch.setenv("XSWEEP_CACHE", str(tmp_path / name))
        stores.append(open_store(bucket))
    return stores


def _write(store: Store, **files: str) -> Path:
    folder = store.root / FOLDER
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def _names(bucket: str) -> set[str]:
    files = fsspec.filesystem("s3", use_listings_cache=False)
    return {f"s3://{name}".removeprefix(f"{bucket}/") for name in files.find(bucket)}


def test_a_folder_that_one_host_finished_is_fetched_complete_by_another(hosts: list[Store]) -> None:
    one, two = hosts
    with one.uploading(FOLDER, LOG):
        write_manifest(_write(one, summary_json='{"a": 1}', model__weights="w" * 1000))
        (one.root / LOG).write_text("step 1\n")
    assert not two.is_published("jobs/other")
    assert two.is_published(FOLDER)
    assert read_manifest(two.fetch(FOLDER)).keys() == {"files"}
    assert (two.root / FOLDER / "model/weights").read_text() == "w" * 1000
    assert two.fetch_file(LOG).read_text() == "step 1\n"


def test_the_manifest_is_the_last_object(hosts: list[Store], bucket: str) -> None:
    folder = _write(hosts[0], summary_json="{}", model__weights="w")
    uploads = Uploads(hosts[0], FOLDER, LOG)
    write_manifest(folder)
    uploads.sync()
    assert _names(bucket) == {f"{FOLDER}/summary.json", f"{FOLDER}/model/weights"}
    with pytest.raises(DataError, match="unfinished"):
        hosts[1].fetch_results(FOLDER)
    uploads.finish()
    assert f"{FOLDER}/manifest.json" in _names(bucket)


def test_results_are_fetched_without_the_weights(hosts: list[Store]) -> None:
    one, two = hosts
    with one.uploading(FOLDER, LOG):
        write_manifest(_write(one, summary_json='{"a": 1}', model__weights="w" * 1000))
    found = two.fetch_results(FOLDER)
    assert json.loads((found / "summary.json").read_text()) == {"a": 1}
    assert not (found / "model").exists()
    assert not (two.root / FOLDER).exists(), "a copy without weights must not pass for the folder"


def test_a_file_that_the_store_lost_is_detected(hosts: list[Store], bucket: str) -> None:
    one, two = hosts
    with one.uploading(FOLDER, LOG):
        write_manifest(_write(one, summary_json="{}", model__weights="w"))
    fsspec.filesystem("s3").rm(f"{bucket}/{FOLDER}/model/weights")
    with pytest.raises(DataError, match="weights: missing where the manifest lists 1 bytes"):
        two.fetch_results(FOLDER)


def test_another_host_resumes_from_the_checkpoints_of_a_killed_attempt(
    hosts: list[Store], bucket: str
) -> None:
    one, two = hosts
    uploads = Uploads(one, FOLDER, LOG)
    first = {"checkpoints__step-1__weights": "1", "checkpoints__step-1__manifest_json": "{}"}
    _write(one, **first, **{"checkpoints__.step-2.part__weights": "half"})
    uploads.sync()
    assert _names(bucket) == {
        f"{FOLDER}/checkpoints/step-1/weights",
        f"{FOLDER}/checkpoints/step-1/manifest.json",
    }
    for path in sorted((one.root / FOLDER).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    _write(one, **{"checkpoints__step-2__weights": "22"})
    uploads.sync()
    assert _names(bucket) == {f"{FOLDER}/checkpoints/step-2/weights"}
    assert (two.fetch(FOLDER) / "checkpoints/step-2/weights").read_text() == "22"
    assert not two.is_published(FOLDER)
    # Files that the attempt saves later are fetched by the next call.
    _write(one, **{"checkpoints__step-3__weights": "333"})
    uploads.sync()
    assert (two.fetch(FOLDER) / "checkpoints/step-3/weights").read_text() == "333"


def test_a_failed_attempt_uploads_its_files_and_no_manifest(hosts: list[Store]) -> None:
    one, two = hosts

    def work() -> None:
        with one.uploading(FOLDER, LOG):
            _write(one, metrics="1\n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert (two.fetch(FOLDER) / "metrics").read_text() == "1\n"
    assert not two.is_published(FOLDER)


def test_files_are_listed_with_sizes_and_removed_on_all_hosts(
    hosts: list[Store], bucket: str
) -> None:
    one, two = hosts
    with one.uploading(FOLDER, LOG):
        _write(one, model__weights="www")
    ((name, (size_bytes, written_at)),) = two.listing(FOLDER).items()
    assert (name, size_bytes) == ("model/weights", 3)
    assert written_at == pytest.approx((one.root / FOLDER / name).stat().st_mtime, abs=5)
    one.remove(FOLDER)
    assert _names(bucket) == set()
    assert not (one.root / FOLDER).exists()


def test_a_shared_folder_is_used_in_place(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    assert store.url is None
    with store.uploading(FOLDER, LOG):
        write_manifest(_write(store, summary_json="{}"))
    assert store.is_published(FOLDER)
    assert store.fetch(FOLDER) == store.fetch_results(FOLDER) == tmp_path / "store" / FOLDER
    assert set(store.listing(FOLDER)) == {"summary.json", "manifest.json"}


def test_a_missing_bucket_is_refused(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XSWEEP_CACHE", str(tmp_path))
    with pytest.raises(SetupError, match=r"store s3://other/x cannot be written"):
        open_store("s3://other/x")


def test_a_password_in_the_url_is_refused_and_not_shown() -> None:
    with pytest.raises(SetupError, match="holds a password") as refused:
        open_store("sftp://me:hush@host/study")
    assert "hush" not in str(refused.value)
