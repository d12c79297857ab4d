from pathlib import Path

import pytest

from xsweep.evaluator.data.files import atomic_write


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
def test_a_failure_leaves_the_old_content_and_no_draft(tmp_path: Path, is_folder: bool) -> None:
    def break_off() -> None:
        with atomic_write(path) as draft:
            (draft.mkdir if is_folder else draft.touch)()
            raise KeyboardInterrupt

    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
