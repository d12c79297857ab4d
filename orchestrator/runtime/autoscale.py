"""Jobs that no node can run now: wait for one, ask Ray's autoscaler for it, in the end refuse."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import NamedTuple

import ray

from xsweep.db.status import PendingDemand
from xsweep.orchestrator.formatting import counted
from xsweep.orchestrator.runtime.placement import Node, ResourceRequest, request_of

MOST_PROCESSES = 1000
"""Processes that the autoscaler is asked to make room for; it ignores more."""


class Unmet(NamedTuple):
    """The reason why no node can run a job, and since when."""

    reason: str
    since_s: float


class Demand:
    """The jobs that could run if the cluster had more nodes."""

    def __init__(self, patience_s: float, *, scales: bool = False) -> None:
        self.patience_s = patience_s
        """Time to wait for a suitable node; then the job fails with the reason."""
        self.scales = scales
        """True: the cluster may have an autoscaler."""
        self._unmet: dict[int, Unmet] = {}
        self._retry: set[int] = set()
        self._nodes: frozenset[str] = frozenset()
        self._requested: tuple[list, list] | None = None
        """None: the requests of a controller before this one may be in force."""

    def waiting(self, nodes: Sequence[Node]) -> set[int]:
        """Return the jobs not to claim: the nodes have not changed, and patience has not ended."""
        now = frozenset(node.id for node in nodes)
        if now != self._nodes:
            self._nodes, self._retry = now, set(self._unmet)
        ends_s = time.monotonic() - self.patience_s
        return {
            job_id
            for job_id, unmet in self._unmet.items()
            if job_id not in self._retry and unmet.since_s > ends_s
        }

    def wait(self, job_id: int, reason: str) -> bool:
        """Record that no node can run the job. False: it has waited long enough to fail."""
        first = self._unmet.setdefault(job_id, Unmet(reason, time.monotonic()))
        self._retry.discard(job_id)
        if time.monotonic() - first.since_s < self.patience_s:
            return True
        del self._unmet[job_id]
        return False

    def satisfied(self, job_id: int) -> None:
        """Record that the job was placed."""
        self._unmet.pop(job_id, None)

    def summary(self) -> str | None:
        """Describe for people what is waited for; None where every job can run."""
        if not self._unmet:
            return None
        first = min(self._unmet.values(), key=lambda unmet: unmet.since_s)
        return f"for a node, with {counted(len(self._unmet), 'job')}: one {first.reason}"

    @property
    def age_s(self) -> float:
        """Time for which the oldest of them has waited."""
        now_s = time.monotonic()
        return max((now_s - unmet.since_s for unmet in self._unmet.values()), default=0.0)

    def request(
        self, running: Iterable[ResourceRequest], pending: Iterable[ResourceRequest]
    ) -> None:
        """Ask the autoscaler, where there is one, for all that would be used at once.

        While nothing is pending nothing is requested, and the cluster may shrink.
        """
        if not self.scales:
            return
        more = list(islice(pending, MOST_PROCESSES))
        requests = islice(chain(running, more), MOST_PROCESSES) if more else ()
        ranks = [request for request in requests for _ in range(request.ranks)]
        bundles = [dict(request.resources) for request in ranks]
        # as Ray's selectors: `eu|us` is `in(eu,us)`
        selectors = [
            {key: f"in({value.replace('|', ',')})" for key, value in request.labels.items()}
            for request in ranks
        ]
        if (bundles, selectors) != self._requested:
            self._requested = bundles, selectors
            ray.autoscaler.sdk.request_resources(
                bundles=bundles, bundle_label_selectors=selectors or None
            )


def within(
    limits: Mapping[str, int], running: Mapping[str, int], pending: Iterable[PendingDemand]
) -> Iterator[ResourceRequest]:
    """Yield the requests of pending jobs that the limits allow beside the running ones.

    `limits` and `running` count jobs by kind: 5 pending trainings, a limit of 4 and 1 that runs
    give 3 requests.
    """
    left: dict[str, float] = {kind: limit - running.get(kind, 0) for kind, limit in limits.items()}
    for demand in pending:
        count = max(0, min(demand.jobs, left.get(demand.kind, math.inf), MOST_PROCESSES))
        left[demand.kind] = left.get(demand.kind, math.inf) - count
        yield from [request_of(demand.resources)] * int(count)
