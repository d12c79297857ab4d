"""What a job asks of the cluster, under Ray's names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Resources = dict[str, float]

_NAMES = {"cpus": "CPU", "gpus": "GPU", "memory_bytes": "memory"}
_BUILT_IN = frozenset(_NAMES.values())


@dataclass(frozen=True, kw_only=True)
class Request:
    """`resources` of each of `ranks` processes, on nodes that bear the labels."""

    resources: Resources
    ranks: int = 1
    spread: bool = False
    """Whether every rank needs a node of its own."""
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """The options of an actor that reserves what one rank needs."""
        others = {key: need for key, need in self.resources.items() if key not in _BUILT_IN}
        return {
            "num_cpus": self.resources.get("CPU", 0),
            "num_gpus": self.resources.get("GPU", 0),
            "memory": self.resources.get("memory"),
            "resources": others or None,
        }

    def __str__(self) -> str:
        needs = ", ".join(f"{need:g} {key}" for key, need in sorted(self.resources.items()))
        labels = ", ".join(f"{key}={value}" for key, value in sorted(self.labels.items()))
        ranks = f"{self.ranks} times " if self.ranks > 1 else ""
        apart = " on nodes of their own" if self.spread and self.ranks > 1 else ""
        return f"{ranks}{needs}{apart}{f' on a node with {labels}' if labels else ''}"


def request_of(asked: Mapping[str, Any]) -> Request:
    """A job's stored `resources` as a request; one CPU where nothing is said."""
    plain = {
        _NAMES.get(key, key): float(value)
        for key, value in asked.items()
        if value and key not in ("ranks", "spread", "labels")
    }
    return Request(
        resources={"CPU": 1.0, **plain},
        ranks=int(asked.get("ranks") or 1),
        spread=bool(asked.get("spread")),
        labels=dict(asked.get("labels") or {}),
    )
