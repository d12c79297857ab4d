"""Jobs that no node of the cluster can meet now: waited for, asked for, and in the end refused."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import ray

from xsweep.db.status import PendingDemand
from xsweep.orchestrator.runtime.placement import Node, Request, request_of

ASKED_AT_MOST = 1000
"""Processes that the autoscaler is asked to make room for: more is beyond what it looks at."""


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
        self.scales = scales
        """Whether the cluster may have an autoscaler that listens to `ask`."""
        self._unmet: dict[int, Unmet] = {}
        self._again: set[int] = set()
        self._nodes: frozenset[str] = frozenset()
        self._asked: tuple[list, list] | None = None
        """None: whatever a controller before this one has asked for."""

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

    def ask(self, held: Iterable[Request], wanted: Iterable[Request]) -> None:
        """Tell the autoscaler, where there is one, all that would be used at once.

        `held` is what runs, `wanted` what could begin. Only where there is something of the latter
        the cluster has to keep its size; without, it may shrink as it likes.
        """
        if not self.scales:
            return
        more = list(islice(wanted, ASKED_AT_MOST))
        requests = islice(chain(held, more), ASKED_AT_MOST) if more else ()
        asked = [
            (dict(request.resources), _selector(request))
            for request in requests
            for _ in range(request.ranks)
        ]
        bundles, selectors = [each for each, _ in asked], [each for _, each in asked]
        if (bundles, selectors) != self._asked:
            self._asked = bundles, selectors
            ray.autoscaler.sdk.request_resources(
                bundles=bundles, bundle_label_selectors=selectors or None
            )


def within(
    limits: Mapping[str, int], running: Mapping[str, int], wants: Iterable[PendingDemand]
) -> Iterator[Request]:
    """The requests of those jobs that may run at once, beside so many of each kind that do.

    Worked: 5 trainings that may begin, a limit of 4 and 1 that runs give 3 requests.
    """
    left: dict[str, float] = {kind: limit - running.get(kind, 0) for kind, limit in limits.items()}
    for want in wants:
        count = max(0, min(want.jobs, left.get(want.kind, math.inf), ASKED_AT_MOST))
        left[want.kind] = left.get(want.kind, math.inf) - count
        yield from [request_of(want.resources)] * int(count)


def _selector(request: Request) -> dict[str, str]:
    """The labels as Ray's selectors: `eu|us` is `in(eu,us)`."""
    return {key: f"in({value.replace('|', ',')})" for key, value in request.labels.items()}
