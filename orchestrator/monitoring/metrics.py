"""The job table as metrics in Prometheus' text format; docs/operations.md describes each."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import Engine

from xsweep.db.status import ended_attempts, summary
from xsweep.errors import SetupError

log = logging.getLogger("xsweep")

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
Family = CounterMetricFamily | GaugeMetricFamily


class JobTable(Collector):
    """Reads the job table at every scrape."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> Iterator[Family]:
        """Yield all metrics. Raises SetupError while the database is away."""
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
        yield _family(gauge, "running_attempts", "Running attempts", running, "kind")
        yield _family(gauge, "pairs_per_second", "Pairs scored", pairs_per_s, "kind")
        yield _family(gauge, "queue_age_seconds", "Age of the oldest ready job", age_s)
        yield _family(gauge, "controllers", "Controllers seen in the last minute", controllers)


def _family(
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily],
    name: str,
    help: str,
    values: Mapping[Any, float],
    *labels: str,
) -> Family:
    """Return a metric; `values` are by the label's value, or by a tuple of several labels'."""
    family = kind(f"xsweep_{name}", help, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric([key] if isinstance(key, str) else key, value)
    return family


def as_text(engine: Engine) -> str:
    """Render the exposition format 0.0.4, which Prometheus and textfile collectors read.

    Raises SetupError where the database does not answer.
    """
    return generate_latest(JobTable(engine)).decode()


@contextmanager
def serving_metrics(engine: Engine, port: int | None) -> Iterator[None]:
    """Answer scrapes on 127.0.0.1 from a thread; None serves nothing.

    While the database is away a scrape fails with status 500. Raises SetupError where the port is
    taken.
    """
    if port is None:
        yield
        return
    registry = CollectorRegistry()
    registry.register(JobTable(engine))
    try:
        server, thread = start_http_server(port, "127.0.0.1", registry)
    except OSError as error:
        raise SetupError(
            f"metrics cannot be served on port {port} of 127.0.0.1 ({error.strerror}): choose "
            "another --metrics-port"
        ) from error
    log.info("metrics: http://127.0.0.1:%d/metrics", port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
