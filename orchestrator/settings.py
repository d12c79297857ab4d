"""Where the database, the store and the cluster are: by flag, then environment, then default."""

import os
from dataclasses import dataclass
from pathlib import Path

from xsweep import SetupError

SHORTEST_LEASE_S = 10.0
"""Shorter than a few unanswered questions, a lease would end under jobs that live."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One installation's places; everything is below `.xsweep/` unless told otherwise."""

    home: Path
    database: str
    """SQLAlchemy URL. Never print it as it is: `db.engine.redacted` hides the password."""
    store: str
    """Folder (a path or file:// URL) under which every result lives."""
    ray_address: str | None
    """Address of a running Ray cluster; None lets the controller start one on this machine."""
    data_home: Path | None
    """Folder of the user's own data; grid files refer to it as `${data_home}`."""
    lease_s: float = 60.0
    """How long a job stays with a controller or a worker that is not heard of."""


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
        lease_s=_lease_s(environment.get("XSWEEP_LEASE_S") or "60"),
    )


def _lease_s(given: str) -> float:
    try:
        lease_s = float(given)
    except ValueError:
        lease_s = 0.0
    if lease_s < SHORTEST_LEASE_S:
        raise SetupError(
            f"XSWEEP_LEASE_S={given}: give seconds, at least {SHORTEST_LEASE_S:.0f}; 60 is usual"
        )
    return lease_s
