"""Metrics port and webhook of a controller."""

import logging
import time
from collections.abc import Callable

from sqlalchemy import Engine

from orchestrator.metrics import serve_metrics
from orchestrator.settings import Settings
from orchestrator.webhook import Announcer, Webhook
from xsweep import SetupError

log = logging.getLogger("xsweep")

EVERY_S = 10.0
COST = 100
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
            self._due_s = ended_s + max(EVERY_S, COST * (ended_s - began_s))

    def close(self) -> None:
        """Announce what is new still, let the webhook send what waits, and free the port."""
        if self._webhook and self._announcer:
            try:
                self._announcer.look()
            except SetupError as error:
                log.warning("%s", error)
            self._webhook.close()
        self._end_metrics()
