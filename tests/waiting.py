"""Waiting for what happens outside of this process."""

import time
from collections.abc import Callable
from typing import Any


def wait_for(condition: Callable[[], Any], timeout_s: float = 120, what: str = "it") -> Any:
    """The condition's first true answer, asked for until then; TimeoutError says what was meant."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"still waiting for {what} after {timeout_s:.0f} s")
        time.sleep(0.05)
    return found
