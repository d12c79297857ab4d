import pytest
import torch

from trainer.checkpoints import Checkpoint, list_checkpoints, load_newest, save_checkpoint


def checkpoint(step):
    weights = {"w": torch.full((2, 3), float(step))}
    return Checkpoint(weights, {"exp_avg.w": weights["w"].T}, {}, {"step": step})


def test_a_checkpoint_reads_back_as_it_was(tmp_path):
    save_checkpoint(tmp_path, checkpoint(5))
    found = load_newest([tmp_path])
    assert found.progress == {"step": 5}
    assert torch.equal(found.weights["w"], torch.full((2, 3), 5.0))
    assert torch.equal(found.moments["exp_avg.w"], torch.full((3, 2), 5.0))


def test_the_last_two_checkpoints_stay(tmp_path):
    for step in (8, 9, 10):
        save_checkpoint(tmp_path, checkpoint(step))
    assert [path.name for path in list_checkpoints([tmp_path])] == ["step-10", "step-9"]


def test_the_furthest_of_several_attempts_is_taken(tmp_path):
    save_checkpoint(tmp_path / "new", checkpoint(3))
    save_checkpoint(tmp_path / "old", checkpoint(12))
    assert load_newest([tmp_path / "new", tmp_path / "old"]).progress["step"] == 12


@pytest.mark.parametrize("part", ["weights.safetensors", "progress.json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, part):
    save_checkpoint(tmp_path, checkpoint(1))
    save_checkpoint(tmp_path, checkpoint(2))
    path = tmp_path / "step-2" / part
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert load_newest([tmp_path]).progress["step"] == 1


def test_a_half_written_checkpoint_is_not_seen_and_does_not_hinder(tmp_path):
    (tmp_path / ".step-4.part").mkdir()
    assert load_newest([tmp_path]) is None
    save_checkpoint(tmp_path, checkpoint(4))
    assert load_newest([tmp_path]).progress["step"] == 4
