"""Fixtures that every package's tests share."""

import os
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real TREC and BEIR data, where this machine has one."""
    folder = Path(os.environ.get("XSWEEP_TEST_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set XSWEEP_TEST_DATA to a folder that has them")
    return folder
