"""The job table as metrics in Prometheus' text format.

| metric | labels | meaning |
|---|---|---|
| `xsweep_jobs` | `sweep kind state` | jobs; one of two sweeps counts in both |
| `xsweep_attempts_total` | `outcome` | attempts that ended |
| `xsweep_failures_total` | `failure` | attempts that failed, by class; lost leases count as NODE |
| `xsweep_leases_lost_total` | | attempts whose lease ran out |
| `xsweep_running_attempts` | `kind` | attempts that live |
| `xsweep_pairs_per_second` | `kind` | query-document pairs, by the live attempts together |
| `xsweep_queue_age_seconds` | | since the oldest ready job was submitted; 0 without one |
| `xsweep_controllers` | | controllers heard of in the last minute |

Metrics port and webhook of a controller.
"""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import Engine

from xsweep.db.status import ended_attempts, summary
from xsweep.errors import SetupError
from xsweep.orchestrator.monitoring.webhook import Announcer, Webhook
from xsweep.orchestrator.settings import Settings

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


Family = CounterMetricFamily | GaugeMetricFamily


class JobTable(Collector):
    """Reads the job table at every scrape."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> Iterator[Family]:
        """Yield the metrics of the module's table. Raises SetupError while the database is away."""
        found = summary(self.engine)
        jobs = {
            (sweep.name, kind, state): count
            for sweep in found.sweeps
            for kind, states in sweep.counts.items()
            for state, count in states.items()
        }
        attempts, failures, running = Counter[str](), Counter[str](), Counter[str]()
        for outcome, failure, count in ended_attempts(self.engine):
            attempts[outcome] += count
            if failure is not None:
                failures[failure] += count
        pairs_per_s: dict[str, float] = defaultdict(float)
        for job in found.running:
            running[job.kind] += 1
            pairs_per_s[job.kind] += float((job.progress or {}).get("pairs_per_s") or 0.0)
        counter, gauge = CounterMetricFamily, GaugeMetricFamily
        lost = {(): attempts["expired"]}
        age_s, controllers = {(): found.oldest_ready_s or 0.0}, {(): len(found.controllers)}
        yield _family(gauge, "jobs", "Jobs by sweep", jobs, "sweep", "kind", "state")
        yield _family(counter, "attempts", "Attempts that ended", attempts, "outcome")
        yield _family(counter, "failures", "Failed attempts", failures, "failure")
        yield _family(counter, "leases_lost", "Attempts whose lease ran out", lost)
        yield _family(gauge, "running_attempts", "Live attempts", running, "kind")
        yield _family(gauge, "pairs_per_second", "Of live attempts", pairs_per_s, "kind")
        yield _family(gauge, "queue_age_seconds", "Age of the oldest ready job", age_s)
        yield _family(gauge, "controllers", "Controllers seen in the last minute", controllers)


def _family(
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily],
    name: str,
    help: str,
    values: Mapping[Any, float],
    *labels: str,
) -> Family:
    """A metric whose values are by the value of its label, or by a tuple of those of several."""
    family = kind(f"xsweep_{name}", help, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric([key] if isinstance(key, str) else key, value)
    return family


def as_text(engine: Engine) -> str:
    """Render the exposition format 0.0.4, which Prometheus and textfile collectors read.

    Raises SetupError where the database does not answer.
    """
    return generate_latest(_registry(engine)).decode()


def serve_metrics(engine: Engine, port: int) -> Callable[[], None]:
    """Answer scrapes on 127.0.0.1 from a thread; returns the function that ends it.

    While the database is away a scrape fails with status 500. Raises OSError where the port is
    taken.
    """
    server, thread = start_http_server(port, "127.0.0.1", _registry(engine))

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return end


def _registry(engine: Engine) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(JobTable(engine))
    return registry


log = logging.getLogger("xsweep")


EVERY_S = 10.0


_WATCH_COST = 100
"""Looks are so many times as far apart as one takes: a hundredth of a core, however large the
table."""


class Watching:
    """Serves metrics and posts to the webhook, as far as wanted."""

    def __init__(self, engine: Engine, settings: Settings, metrics_port: int | None = None) -> None:
        """Raises SetupError for a webhook that is no URL and for a port that is taken."""
        self._due_s = 0.0
        self._webhook = Webhook(settings.webhook) if settings.webhook else None
        self._announcer = Announcer(engine, self._webhook) if self._webhook else None
        self._end_metrics: Callable[[], None] = lambda: None
        if metrics_port is not None:
            try:
                self._end_metrics = serve_metrics(engine, metrics_port)
            except OSError as error:
                raise SetupError(
                    f"metrics cannot be served on port {metrics_port} of 127.0.0.1 "
                    f"({error.strerror}): choose another --metrics-port"
                ) from error
            log.info("metrics   http://127.0.0.1:%d/metrics", metrics_port)

    def tick(self) -> None:
        """Announce what is new if it is time to look; SetupError while the database is away."""
        began_s = time.monotonic()
        if self._announcer and began_s >= self._due_s:
            self._announcer.look()
            ended_s = time.monotonic()
            self._due_s = ended_s + max(EVERY_S, _WATCH_COST * (ended_s - began_s))

    def close(self) -> None:
        """Announce what is new still, let the webhook send what waits, and free the port."""
        if self._webhook and self._announcer:
            try:
                self._announcer.look()
            except SetupError as error:
                log.warning("%s", error)
            self._webhook.close()
        self._end_metrics()
