"""The processes of a session, which is what a detached program and all that it starts are."""

import contextlib
import os
import signal
import time

import psutil


def lives(process: psutil.Process) -> bool:
    """Whether a process runs; the dead that nobody reaps do not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def session(leader: int) -> list[psutil.Process]:
    """The living processes of the session that a process opened."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            if os.getsid(process.pid) == leader and lives(process):
                found.append(process)
    return found


def end_session(leader: int, grace_s: float = 3.0) -> None:
    """Ends them all, those first that would start others again."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in session(leader):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        deadline = time.monotonic() + grace_s
        while session(leader) and time.monotonic() < deadline:
            time.sleep(0.1)
