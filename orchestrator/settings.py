"""Where the database, the store and the cluster are: by flag, then environment, then default."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from xsweep.errors import SetupError

Kind = Literal["prepare", "teach", "search", "train", "evaluate"]


KINDS: tuple[str, ...] = get_args(Kind)


SHORTEST_LEASE_S = 10.0
"""Shorter than a few unanswered questions, a lease would end under jobs that live."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One installation's places; everything is below `.xsweep/` unless told otherwise."""

    home: Path
    database: str
    """SQLAlchemy URL. Never print it as it is: `xsweep.db.engine.redacted` hides the password."""
    store: str
    """Folder (a path or file:// URL) under which every result lives."""
    ray_address: str | None
    """Address of a running Ray cluster; None lets the controller start one on this machine."""
    data_home: Path | None
    """Folder of the user's own data; grid files refer to it as `${data_home}`."""
    webhook: str | None = field(default=None, repr=False)
    """URL that a controller tells of finished sweeps and of failures; it may hold a secret."""
    lease_s: float = 60.0
    """How long a job stays with a controller or a worker that is not heard of."""
    node_wait_s: float = 300.0
    """How long jobs of a given cluster wait for a node that could run them; then they fail."""
    limits: dict[str, int] = field(default_factory=dict, hash=False)
    """Jobs of a kind that may run at once."""


def load_settings(
    *,
    database: str | None = None,
    store: str | None = None,
    ray_address: str | None = None,
    data_home: Path | None = None,
) -> Settings:
    """The settings in force, each from its flag, its environment variable or its default."""
    environment = os.environ
    home = Path(environment.get("XSWEEP_HOME", ".xsweep")).absolute()
    data = data_home or environment.get("XSWEEP_DATA_HOME")
    return Settings(
        home=home,
        database=database or environment.get("XSWEEP_DB") or f"sqlite:///{home / 'xsweep.db'}",
        store=store or environment.get("XSWEEP_STORE") or str(home / "store"),
        ray_address=ray_address or environment.get("RAY_ADDRESS") or None,
        data_home=Path(data).absolute() if data else None,
        webhook=environment.get("XSWEEP_WEBHOOK") or None,
        lease_s=_seconds("XSWEEP_LEASE_S", 60.0, least=SHORTEST_LEASE_S),
        node_wait_s=_seconds("XSWEEP_NODE_WAIT_S", 300.0, least=0.0),
        limits=_limits(environment.get("XSWEEP_LIMITS", "")),
    )


def _seconds(name: str, usual: float, *, least: float) -> float:
    given = os.environ.get(name) or str(usual)
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not seconds >= least:
        raise SetupError(
            f"{name}={given}: give seconds, at least {least:.0f}; {usual:.0f} is usual"
        )
    return seconds


def _limits(given: str) -> dict[str, int]:
    """`train=4,evaluate=8` as numbers by kind."""
    limits = {}
    for part in filter(None, given.replace(" ", "").split(",")):
        kind, _, number = part.partition("=")
        if kind not in KINDS or not number.isdigit() or int(number) < 1:
            raise SetupError(
                f"XSWEEP_LIMITS={given}: {part!r} is no KIND=NUMBER; kinds are {', '.join(KINDS)}"
            )
        limits[kind] = int(number)
    return limits
