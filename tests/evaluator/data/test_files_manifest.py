from pathlib import Path

import pytest

from xsweep.errors import DataError
from xsweep.evaluator.data.files import is_finished, read_manifest, write_manifest


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
def test_a_file_that_is_no_manifest_is_a_data_error(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(DataError, match="not a manifest"):
        read_manifest(folder)
