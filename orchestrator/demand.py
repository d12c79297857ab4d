"""Jobs that no node of the cluster can meet now: waited for, asked for, and in the end refused."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import ray

from orchestrator.nodes import Node
from orchestrator.requests import Request


@dataclass(frozen=True)
class Unmet:
    """A job's request, what is missing in words, and since when."""

    request: Request
    missing: str
    since_s: float


class Demand:
    """What a controller could start if the cluster had more to give."""

    def __init__(self, patience_s: float, *, scales: bool = False) -> None:
        self.patience_s = patience_s
        """How long to wait for a node that could; then the job fails with what is missing."""
        self._scales = scales
        """Whether the cluster may have an autoscaler that listens."""
        self._unmet: dict[int, Unmet] = {}
        self._again: set[int] = set()
        self._nodes: frozenset[str] = frozenset()
        self._asked: list[dict[str, float]] = []

    def waiting(self, nodes: Sequence[Node]) -> set[int]:
        """Jobs not to claim: the nodes are what they were, and patience has not ended."""
        now = frozenset(node.id for node in nodes)
        if now != self._nodes:
            self._nodes, self._again = now, set(self._unmet)
        ends_s = time.monotonic() - self.patience_s
        return {
            job_id
            for job_id, unmet in self._unmet.items()
            if job_id not in self._again and unmet.since_s > ends_s
        }

    def unmet(self, job_id: int, request: Request, missing: str) -> bool:
        """Note that nothing here can meet the job; whether it has waited long enough to fail."""
        first = self._unmet.setdefault(job_id, Unmet(request, missing, time.monotonic()))
        self._again.discard(job_id)
        if time.monotonic() - first.since_s < self.patience_s:
            return False
        del self._unmet[job_id]
        return True

    def met(self, job_id: int) -> None:
        """The job has found its place."""
        self._unmet.pop(job_id, None)

    def told(self) -> str | None:
        """What is waited for, for people; None where all could be met."""
        if not self._unmet:
            return None
        first = min(self._unmet.values(), key=lambda unmet: unmet.since_s)
        jobs = f"{len(self._unmet)} job{'s' if len(self._unmet) > 1 else ''}"
        return f"for a node, with {jobs}: one {first.missing}"

    @property
    def age_s(self) -> float:
        """How long the oldest of them has waited."""
        now_s = time.monotonic()
        return max((now_s - unmet.since_s for unmet in self._unmet.values()), default=0.0)

    def ask(self, held: Iterable[Request], unplaced: Iterable[Request]) -> None:
        """Tell the autoscaler, where there is one, all that would be used at once."""
        if not self._scales:
            return
        wanted = [*unplaced, *(unmet.request for unmet in self._unmet.values())]
        # Without anything beyond what runs, the cluster may shrink as it likes.
        requests = [*held, *wanted] if wanted else []
        bundles = [dict(request.resources) for request in requests for _ in range(request.ranks)]
        if bundles != self._asked:
            self._asked = bundles
            ray.autoscaler.sdk.request_resources(bundles=bundles)
