"""Settings of an installation: by flag, then environment, then default."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import quote

from xsweep.errors import SetupError, did_you_mean

Kind = Literal["prepare", "teach", "search", "train", "evaluate"]
KINDS: tuple[str, ...] = get_args(Kind)
STATES = ("waiting", "ready", "running", "done", "failed", "skipped", "cancelled")
"""Those of `xsweep.db.schema.State`, whose import takes longer than all of `--help`."""

TRACKERS = ("wandb", "mlflow", "trackio", "tensorboard")
"""Experiment trackers, named as the packages that they need."""

SECRETS = (
    *("XSWEEP_DB", "XSWEEP_WEBHOOK", "PGPASSWORD", "WANDB_API_KEY", "MLFLOW_TRACKING_URI"),
    *("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "TRACKIO_SERVER_URL"),
    *("TRACKIO_WRITE_TOKEN", "TRACKIO_WEBHOOK_URL"),
)
"""Variables that may hold credentials: workers do not get them, and no message shows them."""

SHORTEST_LEASE_S = 10.0
"""A shorter lease would expire after a few unanswered status questions."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one installation; all files are below `.xsweep/` by default."""

    home: Path
    database: str
    """SQLAlchemy URL. Never print it as it is: `xsweep.db.engine.redacted` hides the password."""
    store: str
    """Store of all results: a path or a URL."""
    ray_address: str | None
    """Address of a running Ray cluster; None lets the controller start one on this machine."""
    data_home: Path | None
    """Folder of the user's own data; grid files refer to it as `${data_home}`."""
    webhook: str | None = field(default=None, repr=False)
    """URL to which a controller posts ends of sweeps and failures; it may hold a secret."""
    lease_s: float = 60.0
    """Time for which a silent controller or worker keeps its job."""
    node_wait_s: float = 300.0
    """Time for which jobs wait for a node that can run them, on a cluster not started here."""
    limits: dict[str, int] = field(default_factory=dict, hash=False)
    """Most jobs of a kind that run at once."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers to which a controller sends curves and results."""


def load_settings(
    *,
    database: str | None = None,
    store: str | None = None,
    ray_address: str | None = None,
    data_home: Path | None = None,
) -> Settings:
    """Return the current settings, each from its flag, its environment variable or its default."""
    environment = os.environ
    home = absolute(environment.get("XSWEEP_HOME", ".xsweep"))
    file = f"sqlite:///{quote(str(home / 'xsweep.db'))}"  # a path may have a ? or %41 in it
    data = data_home or environment.get("XSWEEP_DATA_HOME")
    return Settings(
        home=home,
        database=database or environment.get("XSWEEP_DB") or file,
        store=store or environment.get("XSWEEP_STORE") or str(home / "store"),
        ray_address=ray_address or environment.get("RAY_ADDRESS") or None,
        data_home=absolute(data) if data else None,
        webhook=environment.get("XSWEEP_WEBHOOK") or None,
        lease_s=_seconds("XSWEEP_LEASE_S", 60.0, least=SHORTEST_LEASE_S),
        node_wait_s=_seconds("XSWEEP_NODE_WAIT_S", 300.0, least=0.0),
        limits=_limits(environment.get("XSWEEP_LIMITS", "")),
        trackers=parse_trackers(environment.get("XSWEEP_TRACKERS", "").split(",")),
    )


def absolute(path: Path | str) -> Path:
    """Return the absolute path; links are followed only where a `..` would lead elsewhere."""
    return Path(path).resolve() if ".." in Path(path).parts else Path(path).absolute()


def _seconds(name: str, default: float, *, least: float) -> float:
    given = os.environ.get(name) or str(default)
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not seconds >= least:
        raise SetupError(
            f"{name}={given}: give seconds, at least {least:.0f}; the default is {default:.0f}"
        )
    return seconds


def parse_trackers(given: Iterable[str]) -> tuple[str, ...]:
    """The named trackers, each once. Raises SetupError for an unknown one."""
    names = tuple(dict.fromkeys(filter(None, map(str.strip, given))))
    for name in names:
        if name not in TRACKERS:
            hint = did_you_mean(name, TRACKERS)
            raise SetupError(f"tracker {name!r}: {hint or 'use some of ' + ', '.join(TRACKERS)}")
    return names


def _limits(given: str) -> dict[str, int]:
    """Parse `train=4,evaluate=8`."""
    limits = {}
    for part in filter(None, given.replace(" ", "").split(",")):
        kind, _, number = part.partition("=")
        if kind not in KINDS or not number.isdigit() or int(number) < 1:
            raise SetupError(
                f"XSWEEP_LIMITS={given}: {part!r} is not KIND=NUMBER; kinds are {', '.join(KINDS)}"
            )
        limits[kind] = int(number)
    return limits
