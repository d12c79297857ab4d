import subprocess
from pathlib import Path

import pytest
import torch

from xsweep.evaluator import provenance


def test_provenance_names_code_packages_hardware_and_settings() -> None:
    found = provenance.collect({"depth": 3})
    assert found["spec"] == {"depth": 3}
    assert found["packages"]["torch"].startswith("2.")
    assert found["hardware"]["cores"] >= 1
    assert found["started"].endswith("+00:00")
    assert found["fp32_products"]["precision"] == torch.get_float32_matmul_precision()


def test_commit_and_dirty_flag_are_those_of_the_source_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evaluator").mkdir()
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "evaluator/provenance.py"))
    found = provenance.source_tree.__wrapped__  # not remembered
    assert found() is None

    def git(*arguments: str) -> str:
        settings = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        command = ["git", "-C", str(tmp_path), *settings, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    assert found() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "new").write_text("x")
    assert found() == {"commit": git("rev-parse", "HEAD"), "dirty": True}


def test_paths_of_this_machine_are_left_out_at_any_depth() -> None:
    spec = {
        "file": {"path": "/data/a.run", "md5": "0" * 32},
        "models": ({"folder": "/models/bert/", "layers": 2}, {"id": "a/b", "folder": None}),
        "collection": {"further": [{"id": "beir/nq", "home": "/data/irds"}]},
    }
    assert provenance.without_places(spec) == {
        "file": {"path": "a.run", "md5": "0" * 32},
        "models": [{"folder": "bert", "layers": 2}, {"id": "a/b", "folder": None}],
        "collection": {"further": [{"id": "beir/nq", "home": None}]},
    }
    assert provenance.collect(spec)["spec"] == provenance.without_places(spec)
