"""The job table as metrics: Prometheus text, and gauges of Ray's own metrics agent.

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
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import Engine

from db.figures import Figures, figures

if TYPE_CHECKING:
    from ray.util.metrics import Gauge

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
COST = 100
"""A text is given again for so many times the seconds that it took: a hundredth of a core."""


Values = dict[tuple[str, ...], float]
"""By the values of the labels."""


class Metric(NamedTuple):
    """One metric with its values by label values."""

    name: str
    help: str
    labels: tuple[str, ...]
    values: Values
    counts: bool = False
    """Whether it only grows."""


def metrics_of(found: Figures) -> Iterator[Metric]:
    """The metrics of the module's table."""
    jobs: Values = {key: float(count) for key, count in found.jobs.items()}
    yield Metric("xsweep_jobs", "Jobs of each sweep", ("sweep", "kind", "state"), jobs)
    outcomes = _by_one(found.attempts)
    yield Metric("xsweep_attempts", "Attempts that ended", ("outcome",), outcomes, counts=True)
    failures = _by_one(found.failures)
    yield Metric("xsweep_failures", "Failed attempts", ("failure",), failures, counts=True)
    lost: Values = {(): float(found.attempts.get("expired", 0))}
    yield Metric("xsweep_leases_lost", "Attempts whose lease ran out", (), lost, counts=True)
    running = _by_one(found.running)
    yield Metric("xsweep_running_attempts", "Attempts that live", ("kind",), running)
    speed = _by_one(found.pairs_per_s)
    yield Metric("xsweep_pairs_per_second", "Pairs of all live attempts", ("kind",), speed)
    age: Values = {(): found.queue_age_s}
    yield Metric("xsweep_queue_age_seconds", "Age of the oldest ready job", (), age)
    alive: Values = {(): float(found.controllers)}
    yield Metric("xsweep_controllers", "Controllers heard of in the last minute", (), alive)


def _by_one(values: Mapping[str, float]) -> Values:
    return {(key,): float(value) for key, value in values.items()}


def as_text(found: Figures) -> str:
    """The exposition format 0.0.4 that Prometheus scrapes and textfile collectors read."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.exposition import generate_latest
    from prometheus_client.registry import Collector, CollectorRegistry

    class _Figures(Collector):
        def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
            for metric in metrics_of(found):
                kind = CounterMetricFamily if metric.counts else GaugeMetricFamily
                family = kind(metric.name, metric.help, labels=metric.labels)
                for labels, value in sorted(metric.values.items()):
                    family.add_metric(labels, value)
                yield family

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures())
    return generate_latest(registry).decode()


def scraper(engine: Engine) -> Callable[[], str]:
    """A function that gives the text, computed anew when `COST` times its cost have passed."""
    lock = threading.Lock()
    kept, fresh_until_s = "", -1.0

    def scrape() -> str:
        nonlocal kept, fresh_until_s
        with lock:
            began_s = time.monotonic()
            if began_s > fresh_until_s:
                kept = as_text(figures(engine))
                ended_s = time.monotonic()
                fresh_until_s = ended_s + COST * (ended_s - began_s)
            return kept

    return scrape


class RayGauges:
    """The same metrics under the same names (Ray puts `ray_` before them) in Ray's own agent.

    All are gauges, also what only grows: a new controller goes on with the table's counts. What
    vanished from the table is set to 0 once.
    """

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}
        self._told: dict[str, set[tuple[str, ...]]] = {}

    def tell(self, found: Figures) -> None:
        """Hand the figures to Ray's agent of this node; needs a connection to Ray."""
        from ray.util.metrics import Gauge

        for metric in metrics_of(found):
            name = metric.name + ("_total" if metric.counts else "")
            if name not in self._gauges:
                self._gauges[name] = Gauge(name, metric.help, tag_keys=metric.labels)
            gone = self._told.get(name, set()) - metric.values.keys()
            for labels, value in [*metric.values.items(), *((labels, 0.0) for labels in gone)]:
                self._gauges[name].set(value, tags=_tags(metric.labels, labels))
            self._told[name] = set(metric.values)


def _tags(names: Sequence[str], values: Sequence[str]) -> dict[str, str]:
    return dict(zip(names, values, strict=True))


def serve_metrics(engine: Engine, port: int) -> Callable[[], None]:
    """Answer `GET /metrics` on 127.0.0.1 in a thread; gives the function that ends it.

    Raises OSError where the port is taken.
    """
    from http import HTTPStatus

    from orchestrator.serve.server import TEXT, Answer, Request, open_server
    from xsweep import SetupError

    scrape = scraper(engine)

    def respond(request: Request) -> Answer:
        if request.parts != ("metrics",):
            return Answer("Only /metrics is here.\n", TEXT, HTTPStatus.NOT_FOUND)
        try:
            return Answer(scrape(), PROMETHEUS)
        except SetupError as error:
            return Answer(f"{error}\n", TEXT, HTTPStatus.SERVICE_UNAVAILABLE)

    server = open_server(respond, port)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()

    def end() -> None:
        server.shutdown()
        server.server_close()

    return end
