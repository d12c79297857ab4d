"""Provenance of a result: code, packages, hardware, settings."""

import importlib.metadata
import json
import os
import platform
import socket
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path, PurePath
from typing import Any

from xsweep import __version__
from xsweep.errors import SetupError
from xsweep.evaluator.device import cpu_model

PACKAGES = (
    *("torch", "transformers", "tokenizers", "deepspeed", "ray", "numpy", "ranx", "numba"),
    *("bm25s", "PyStemmer", "ir_datasets"),
)


def collect(spec: dict[str, Any]) -> dict[str, Any]:
    """Provenance of a job that starts now; `seal` adds its end."""
    return {
        "xsweep": __version__,
        "source": source_tree(),
        "python": platform.python_version(),
        "packages": _packages(),
        "hardware": hardware(),
        "fp32_products": fp32_products(),
        "host": socket.gethostname(),
        "started": now(),
        "spec": without_places(spec),
    }


def seal(out: Path, origin: dict[str, Any], summary: dict[str, Any], **found: Any) -> None:
    """Writes summary.json, and provenance.json: `origin` by `collect`, `found`, the end time."""
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    sealed = origin | {"ended": now()} | found
    (out / "provenance.json").write_text(json.dumps(sealed, indent=1) + "\n")


def without_places(value: Any) -> Any:
    """A spec without the folders of this machine: a path is reduced to its last part.

    `{"file": {"path": "/data/a.run"}, "home": "/data"}` becomes
    `{"file": {"path": "a.run"}, "home": None}`.
    """
    if isinstance(value, list | tuple):
        return [without_places(each) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {key: without_places(each) for key, each in value.items()}
    for key in ("path", "folder"):
        if isinstance(kept.get(key), str):
            kept[key] = PurePath(kept[key]).name
    if isinstance(kept.get("home"), str):
        kept["home"] = None
    return kept


def installed_version(package: str) -> str:
    """The version of an installed package. Raises SetupError if it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise SetupError(f"{package!r} is not installed here: pip install {package}") from error


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(SetupError):
            found[name] = installed_version(name)
    return found


@cache  # as it is when first asked for: later changes do not affect loaded code
def source_tree() -> dict[str, Any] | None:
    """Commit and dirty flag of the git tree that this code runs from; None when installed."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


@cache
def hardware() -> dict[str, Any]:
    """CPU model, cores that this process may use, and the GPUs' names."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": cpu_model(), "cores": len(os.sched_getaffinity(0)), "gpus": gpus}


def fp32_products() -> dict[str, Any]:
    """PyTorch's precision of fp32 products: `highest` is fp32, `high` and `medium` allow TF32."""
    import torch

    return {
        "precision": torch.get_float32_matmul_precision(),
        "convolutions_in_tf32": torch.backends.cudnn.allow_tf32,
    }


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
