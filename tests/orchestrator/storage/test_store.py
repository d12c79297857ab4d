import pytest
from disks import run_on_a_small_disk

from xsweep.errors import SetupError
from xsweep.orchestrator.storage.store import Store, attempt_folder, open_store


def test_a_store_is_a_path_or_a_file_url(tmp_path):
    assert open_store(str(tmp_path / "a")) == Store(tmp_path / "a")
    assert open_store(f"file://{tmp_path}/b") == Store(tmp_path / "b")
    assert list((tmp_path / "a").iterdir()) == [], "the probe must not stay"
    assert open_store(str(tmp_path / "c"), read_only=True).listing("jobs") == {}
    assert not (tmp_path / "c").exists()


def test_an_unsupported_scheme_is_refused_with_what_to_do():
    with pytest.raises(SetupError, match=r"store nowhere://x: .*or give a folder"):
        open_store("nowhere://x")
    with pytest.raises(SetupError, match="store nowhere://x"):
        open_store("nowhere://x", read_only=True)
    with pytest.raises(SetupError, match="lost with the process"):
        open_store("memory://x")


def test_a_store_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match="cannot be written"):
        open_store(str(tmp_path / "file" / "store"))


ON_A_FULL_DISK = """
from xsweep.errors import SetupError
from xsweep.orchestrator.storage.store import Store, require_writable

store = Store(disk / "store")
require_writable(store, 500_000)
fill()
try:
    require_writable(store, 500_000)
except SetupError as error:
    print(error)
(disk / "filler").unlink()
require_writable(store, 500_000)
print(list(store.root.iterdir()))
"""


def test_a_full_disk_is_noticed_before_a_job_starts_and_the_probe_leaves_nothing(tmp_path):
    refused, left = run_on_a_small_disk(ON_A_FULL_DISK, tmp_path / "disk").splitlines()
    assert "cannot be written (No space left on device): make room" in refused
    assert left == "[]"


def test_no_stored_folder_leads_out_of_the_store(tmp_path):
    folder = attempt_folder("train", "ab" * 32, 3)
    assert Store(tmp_path).resolve(folder) == tmp_path / "jobs/train/ab" / ("ab" * 32) / "attempt-3"
    for outside in ("../elsewhere", "/etc", "jobs/../../x"):
        with pytest.raises(SetupError, match="outside the store"):
            Store(tmp_path).resolve(outside)


def test_a_folder_of_any_name_can_hold_a_store(tmp_path):
    store = open_store(str(tmp_path / "a::b #c%41 *"))
    assert store.listing("jobs") == {}
    assert not store.is_published("jobs")
    (store.root / "jobs/x").mkdir(parents=True)
    (store.root / "jobs/manifest.json").write_text("{}")
    (store.root / "jobs/x/log").write_text("four")
    assert store.is_published("jobs")
    sizes = {name: size_bytes for name, (size_bytes, _) in store.listing("jobs").items()}
    assert sizes == {"manifest.json": 2, "x/log": 4}
