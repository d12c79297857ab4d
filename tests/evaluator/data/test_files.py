from pathlib import Path

import pytest

from xsweep.errors import DataError
from xsweep.evaluator.data.files import atomic_write, is_finished, read_manifest, write_manifest


def test_a_file_appears_only_when_its_draft_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic_write(path) as draft:
        draft.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_appears_with_all_of_its_files(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "model") as draft:
        draft.mkdir()
        (draft / "weights").write_text("w")
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "weights"]


@pytest.mark.parametrize("is_folder", [False, True])
def test_after_a_failure_the_old_content_remains_and_no_draft(
    tmp_path: Path, is_folder: bool
) -> None:
    def fail() -> None:
        with atomic_write(path) as draft:
            (draft.mkdir if is_folder else draft.touch)()
            raise KeyboardInterrupt

    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "deep/b.bin").write_bytes(b"\0\1")
    return tmp_path


def test_a_manifest_lists_every_file_with_size_and_checksum(folder: Path) -> None:
    assert not is_finished(folder)
    manifest = write_manifest(folder)
    assert is_finished(folder)
    assert manifest == read_manifest(folder)
    hello = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert manifest["files"]["a.txt"] == {"sha256": hello, "bytes": 5}
    assert manifest["files"].keys() == {"a.txt", "deep/b.bin"}
    assert write_manifest(folder) == manifest, "closing twice changes nothing"


def test_an_unfinished_folder_is_a_data_error(folder: Path) -> None:
    with pytest.raises(DataError, match="unfinished"):
        read_manifest(folder)


@pytest.mark.parametrize("damage", ["changed", "longer than before", None])
def test_files_that_differ_from_the_manifest_are_found(folder: Path, damage: str | None) -> None:
    write_manifest(folder)
    path = folder / "a.txt"
    if damage is None:
        path.unlink()
    else:
        path.write_text(damage[:5] if damage == "changed" else damage)
    with pytest.raises(DataError, match=r"a\.txt: (missing|damaged)"):
        read_manifest(folder)


@pytest.mark.parametrize("content", ["", "[]", '{"files": {"a.txt": 3}}', "{"])
def test_an_invalid_manifest_is_a_data_error(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(DataError, match="not a manifest"):
        read_manifest(folder)
