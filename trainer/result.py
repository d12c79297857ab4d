"""The result folder of a training or a search: its summary, provenance and manifest."""

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from xsweep.errors import SetupError
from xsweep.evaluator.data.files import write_manifest

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises SetupError if the block fails to write `path`; finished checkpoints are kept."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        full = number in FULL or any(f"os error {code}" in str(error) for code in FULL)
        hint = "the disk is full: make room" if full else "check the disk and its permissions"
        raise SetupError(
            f"{path}: cannot be written ({error}); {hint} and run the training again, it resumes "
            "from its last checkpoint"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file that `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON with a final newline."""
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def write_result(out: Path, summary: dict, provenance: dict) -> None:
    """Writes summary.json and provenance.json, removes checkpoints, and closes the folder.

    Raises SetupError if the disk is full or refuses.
    """
    with writing(out):
        write_json(out / "summary.json", summary)
        write_json(out / "provenance.json", provenance)
        # A failure up to here can resume.
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        write_manifest(out)
