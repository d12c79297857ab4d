"""What a step needs from the host, prepared while the device computes the step before."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Ahead(Generic[Made]):
    """Calls a function of the step for step n + 1, in a thread, once step n was asked for.

    The function is never called twice at once. What it raises is raised by `get`.
    """

    def __init__(self, make: Callable[[int], Made], steps: int) -> None:
        """`steps` is where to stop: no step from there on is prepared."""
        self.make, self.steps = make, steps
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self.next: tuple[int, Future[Made]] | None = None

    def get(self, step: int) -> Made:
        """What was made for a step, at once or as soon as it is ready."""
        prepared, self.next = self.next, None
        if prepared is None or prepared[0] != step:
            prepared = step, self.pool.submit(self.make, step)
        made = prepared[1].result()
        if step + 1 < self.steps:
            self.next = step + 1, self.pool.submit(self.make, step + 1)
        return made

    def close(self) -> None:
        """Waits for the call that runs and makes no further one."""
        self.pool.shutdown(cancel_futures=True)
