"""Files of a user's own that are called like xsweep's modules or its dependencies."""

import os
import site
import sys
from pathlib import Path

import pytest
from tiny import write_study

from xsweep.orchestrator.runtime.import_path import (
    LAST,
    LIBRARY,
    ZIPPED_LIBRARY,
    child_environment,
    put_user_folders_last,
    shadowed,
)


def test_folders_ahead_of_the_standard_library_go_to_the_end(tmp_path, monkeypatch):
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    zipped = f"{Path(LIBRARY).parent}/{ZIPPED_LIBRARY}"
    rest = [zipped, LIBRARY, *site.getsitepackages(), "/somebody/else"]
    monkeypatch.setattr(sys, "path", [first, *rest])
    monkeypatch.setenv(LAST, second)
    monkeypatch.setenv("PYTHONPATH", first)
    put_user_folders_last()
    assert sys.path == [*rest, first, second]
    put_user_folders_last()
    assert sys.path == [*rest, first, second]
    child = child_environment()
    assert child[LAST] == f"{first}{os.pathsep}{second}"
    assert "PYTHONPATH" not in child


def test_a_file_that_would_be_imported_in_place_of_a_package_is_named(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "bm25s", raising=False)
    monkeypatch.setenv(LAST, "")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "bm25s.py").touch()
    names = ["bm25s", "torch", "xsweep"]
    assert shadowed(names) == {"bm25s": str(tmp_path / "bm25s.py")}
    put_user_folders_last()
    assert shadowed(names) == {}


@pytest.mark.slow(20)
def test_a_sweep_imports_no_file_of_the_working_folder_or_pythonpath(workplace, tmp_path):
    write_study(tmp_path, objectives=("infonce",))
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    imported = tmp_path / "imported"
    note = f"import sys\nopen({str(imported)!r}, 'a').write(repr(sys.orig_argv))\n"
    for folder in (tmp_path, libraries):
        for name in ("datasets", "db", "evaluator", "psutil", "ray", "torch", "trainer", "typer"):
            (folder / f"{name}.py").write_text(note)
    workplace.environment["PYTHONPATH"] = str(libraries)
    printed = workplace.xsweep("submit", "tiny.yaml", "--watch")
    assert "nDCG@10" in workplace.command("report"), printed
    assert not imported.exists(), imported.read_text()
