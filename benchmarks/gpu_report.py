"""Rows of figures under a time limit, the ratios between them, and the machine they are from."""

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from xsweep.evaluator.provenance import fp32_products, hardware, source_tree

Figures = dict[str, Any]
Rows = dict[str, dict[str, Figures]]
"""Figures by section and row."""
Place = tuple[str, str, str]
"""Section, row and the name of a figure."""

PACKAGES = ("torch", "transformers", "deepspeed", "sentence-transformers", "flash-attn")
PEERS = {"scoring": "predict", "training": "trainer"}
"""What sentence-transformers does the work of a section with, as its rows begin."""
PLAIN = {"scoring": "padded", "training": "padded, plain", "compile": "eager"}
"""The end of the rows that other ways of ours are compared with."""


class Report:
    """Rows as they are measured; keeps to the time limit and survives what fails."""

    def __init__(self, limit_s: float) -> None:
        self.started, self.limit_s = time.perf_counter(), limit_s
        self.rows: Rows = {}

    def spent_s(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self.started

    def left_s(self) -> float:
        """Seconds until the limit."""
        return self.limit_s - self.spent_s()

    def add(self, section: str, row: str, measure: Callable[[], Figures]) -> Figures:
        """Measures one row, if there is time."""
        if self.left_s() <= 0:
            figures: Figures = {"left_out": "the time limit was reached"}
        else:
            try:
                figures = measure()
            except Exception as error:  # one failing row must not cost the others
                figures = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        return self.put(section, row, figures)

    def put(self, section: str, row: str, figures: Figures) -> Figures:
        """Keeps and prints a row that was measured."""
        self.rows.setdefault(section, {})[row] = figures
        print(f"{section:10} {row:52} {json.dumps(figures)}", flush=True)
        return figures


def ratios(rows: Rows) -> list[Figures]:
    """Quotients of pairs per second, each with the two places of the rows that it is of.

    For every model and kind of work our best row by sentence-transformers', and every other way of
    ours by the padded one under the plain engine. Work that lacks a row is left out.
    """
    return [
        {"of": list(of), "to": list(to), "ratio": round(_at(rows, of) / _at(rows, to), 3)}
        for section in PLAIN
        for of, to in (*_by_peers(rows, section), *_by_plain(rows, section))
    ]


def _at(rows: Rows, place: Place) -> float:
    section, row, name = place
    return rows[section][row][name]


def _measured(rows: Rows, section: str) -> list[str]:
    return [row for row, figures in rows.get(section, {}).items() if figures.get("pairs_per_s")]


def _by_peers(rows: Rows, section: str) -> Iterator[tuple[Place, Place]]:
    # `predict` begins with texts, and so must we.
    name = "from_text_pairs_per_s" if section == "scoring" else "pairs_per_s"
    for peer in _measured(rows, "peers"):
        what, work = peer.split(": ")
        ours: list[Place] = [
            (section, row, name) for row in _measured(rows, section) if row.startswith(f"{work}, ")
        ]
        if what == PEERS.get(section) and ours:
            yield max(ours, key=lambda of: _at(rows, of)), ("peers", peer, "pairs_per_s")


def _by_plain(rows: Rows, section: str) -> Iterator[tuple[Place, Place]]:
    measured = _measured(rows, section)
    for row in measured:
        shape, work, _ = row.split(", ", 2)
        plain = f"{shape}, {work}, {PLAIN[section]}"
        if row != plain and plain in measured:
            yield (section, row, "pairs_per_s"), (section, plain, "pairs_per_s")


def about(device: torch.device) -> Figures:
    """The device, its settings, the code and the versions."""
    settings: Figures = {"fp32_products": fp32_products(), "seconds": "of CPU time"}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        settings |= {
            "seconds": "of wall time",
            "name": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        **settings,
        **hardware(),
        "source": source_tree(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
