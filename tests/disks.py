"""Disks of our own that are small enough to be filled: a mount that only one process sees."""

import subprocess
import sys
from pathlib import Path

import pytest

MOUNT = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'

FILL = """
import errno, sys
from pathlib import Path

disk = Path(sys.argv[1])

def fill():
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC
"""
"""What every program has at hand: `disk`, and `fill` that leaves no byte of it."""


def run_on_a_small_disk(program: str, at: Path, *arguments: str, size: str = "2m") -> str:
    """Run a program with a disk of its own mounted at a folder; what it prints.

    Skips where the kernel lets users make no mounts of their own.
    """
    at.mkdir()
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs user namespaces (`unshare --user --mount`)")
    command = [
        "sh",
        "-c",
        MOUNT,
        "sh",
        size,
        str(at),
        sys.executable,
        "-c",
        FILL + program,
        str(at),
        *arguments,
    ]
    done = subprocess.run([*namespace, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
