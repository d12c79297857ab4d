import resource
import shutil

import pytest
import torch

from xsweep.errors import SetupError
from xsweep.trainer.checkpoint import Checkpoint, list_checkpoints, load_newest, save_checkpoint


def checkpoint(step):
    weights = {"w": torch.full((2, 3), float(step))}
    return Checkpoint(weights, {"exp_avg.w": weights["w"].T}, {}, {"step": step})


def test_a_checkpoint_reads_back_unchanged(tmp_path):
    save_checkpoint(tmp_path, checkpoint(5))
    found = load_newest([tmp_path])
    assert found.progress == {"step": 5}
    assert torch.equal(found.weights["w"], torch.full((2, 3), 5.0))
    assert torch.equal(found.moments["exp_avg.w"], torch.full((3, 2), 5.0))


def test_the_last_two_checkpoints_are_kept(tmp_path):
    for step in (8, 9, 10):
        save_checkpoint(tmp_path, checkpoint(step))
    assert [path.name for path in list_checkpoints([tmp_path])] == ["step-10", "step-9"]


def test_the_furthest_of_several_attempts_is_taken(tmp_path):
    save_checkpoint(tmp_path / "new", checkpoint(3))
    save_checkpoint(tmp_path / "old", checkpoint(12))
    folders = [tmp_path / "new", tmp_path / "old"]
    assert load_newest(folders).progress["step"] == 12
    assert load_newest(folders, most=11).progress["step"] == 3
    assert load_newest(folders, most=2) is None


@pytest.mark.parametrize("part", ["weights.safetensors", "progress.json"])
def test_a_damaged_checkpoint_is_skipped_for_the_previous_one(tmp_path, part):
    save_checkpoint(tmp_path, checkpoint(1))
    save_checkpoint(tmp_path, checkpoint(2))
    path = tmp_path / "step-2" / part
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert load_newest([tmp_path]).progress["step"] == 1


def test_a_half_written_checkpoint_is_ignored(tmp_path):
    (tmp_path / ".step-4.part").mkdir()
    assert load_newest([tmp_path]) is None
    save_checkpoint(tmp_path, checkpoint(4))
    assert load_newest([tmp_path]).progress["step"] == 4


def test_other_folders_among_the_checkpoints_are_passed_over(tmp_path):
    save_checkpoint(tmp_path, checkpoint(4))
    for name in ("step-old", "step-4 (copy)", "step-"):
        shutil.copytree(tmp_path / "step-4", tmp_path / name)
    assert load_newest([tmp_path]).progress["step"] == 4
    save_checkpoint(tmp_path, checkpoint(5))
    assert len(list(tmp_path.iterdir())) == 5


def test_a_full_disk_is_reported_and_keeps_the_previous_checkpoint(tmp_path):
    """A file size limit of 64 kB: writing more fails as on a full disk."""
    save_checkpoint(tmp_path, checkpoint(1))
    large = checkpoint(2)._replace(moments={"exp_avg.w": torch.zeros(100_000)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(SetupError, match=r"step-2: cannot be written .* the disk is full"):
            save_checkpoint(tmp_path, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert load_newest([tmp_path]).progress["step"] == 1


def test_a_folder_that_cannot_be_created_is_reported(tmp_path):
    (tmp_path / "checkpoints").write_text("a file, no folder")
    with pytest.raises(SetupError, match="cannot be written"):
        save_checkpoint(tmp_path / "checkpoints", checkpoint(1))
