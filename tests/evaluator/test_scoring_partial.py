from pathlib import Path

import numpy as np

from xsweep.evaluator.scoring import Done, digest_of, keeper, read_partial

STATE = Done(3, 512, np.arange(5, dtype=np.float32))


def test_a_saved_state_comes_back_under_its_digest_only(tmp_path: Path) -> None:
    keeper(tmp_path, "scores-0", "abc", every_s=0)(STATE)
    found = read_partial([tmp_path / "none", tmp_path], "scores-0", "abc")
    assert found is not None
    assert (found.rows, found.batch_tokens) == (3, 512)
    assert found.scores.tolist() == STATE.scores.tolist()
    assert read_partial([tmp_path], "scores-0", "other") is None
    assert read_partial([tmp_path], "scores-1", "abc") is None


def test_the_furthest_of_several_attempts_counts(tmp_path: Path) -> None:
    for name, rows in (("a", 2), ("b", 4), ("c", 1)):
        keeper(tmp_path / name, "s", "abc", every_s=0)(STATE._replace(rows=rows))
    found = read_partial([tmp_path / name for name in "abc"], "s", "abc")
    assert found is not None
    assert found.rows == 4


def test_states_are_saved_now_and_then_and_a_damaged_file_is_none(tmp_path: Path) -> None:
    keep = keeper(tmp_path, "s", "abc", every_s=1000)
    keep(STATE)
    assert not (tmp_path / "partial").exists()
    keeper(tmp_path, "s", "abc", every_s=0)(STATE)
    path = tmp_path / "partial" / "s.npz"
    path.write_bytes(path.read_bytes()[:50])
    assert read_partial([tmp_path], "s", "abc") is None
    path.write_bytes(b"")
    assert read_partial([tmp_path], "s", "abc") is None


def test_the_digest_tells_pairs_and_settings_apart() -> None:
    one, two = np.array([1, 2]), np.array([3])
    digests = {
        digest_of("x", [(one, two)]),
        digest_of("y", [(one, two)]),
        digest_of("x", [(two, one)]),
        digest_of("x", [(np.array([1]), np.array([2, 3]))]),
        digest_of("x", [(one, two), (one, two)]),
    }
    assert len(digests) == 5
    assert digest_of("x", [(one, two)]) == digest_of("x", [(one.astype(np.uint16), two)])
