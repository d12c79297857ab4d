"""Preflight: check a node's versions, its view of the store, its clock and its GPUs.

Each node runs one small task that needs nothing of xsweep there. A node that fails is never used,
and the reason is logged; a node that joins later is checked when it joins.
"""

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import fsspec
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from xsweep.errors import SetupError, first_line
from xsweep.orchestrator.runtime.placement import Node
from xsweep.orchestrator.storage.store import Store

log = logging.getLogger("xsweep")

PACKAGES = ("ray", "torch", "transformers", "tokenizers", "safetensors", "deepspeed", "ranx")
"""Packages that jobs import and whose versions can change a result."""

LARGEST_SKEW_S = 30.0
"""Leases follow the database's clock alone; but logs, events and file ages would be misread."""

ANSWER_S = 90.0
"""Time for a node to start its first process."""


class NodeReport(TypedDict):
    """The versions, store access and clock of a node."""

    versions: dict[str, str | None]
    """Versions of Python, xsweep and `PACKAGES`; None where a package is missing."""
    sees_probe: bool
    write_error: str | None
    """None where the store can be written."""
    clock_s: float
    gpu_error: str | None
    """The driver's words where PyTorch cannot use as many GPUs as the node offers."""


class Preflight:
    """Admits nodes that pass; each of the others is logged once and never used."""

    def __init__(self, store: Store) -> None:
        self._probe = f"{store.url or store.root}/.probe-{uuid.uuid4().hex}"
        self._pending: dict[ray.ObjectRef, tuple[Node, float]] = {}
        """Nodes that have not answered, and when they were asked."""
        self._fit: set[str] = set()
        self.unfit: dict[str, str] = {}
        """Problem by node id."""

    def admit(self, nodes: Sequence[Node]) -> list[Node]:
        """Return the nodes that have passed so far, and start checking new ones."""
        pending = {node.id for node, _ in self._pending.values()}
        for node in nodes:
            if runs_jobs(node) and node.id not in self._fit | pending | self.unfit.keys():
                self._ask(node)
        if self._pending:
            self._collect()
        return [node for node in nodes if node.id in self._fit]

    def require(self, nodes: Callable[[], Sequence[Node]]) -> None:
        """Wait until the current nodes have answered. Raises SetupError where one is unfit."""
        deadline = time.monotonic() + ANSWER_S
        self.admit(nodes())
        while self._pending and time.monotonic() < deadline:
            time.sleep(0.2)
            self.admit(nodes())
        if self.unfit:
            problems = "\n  ".join(self.unfit.values())
            raise SetupError(f"these nodes of the cluster cannot run jobs:\n  {problems}")

    def close(self) -> None:
        """Remove the probe file."""
        files, place = fsspec.url_to_fs(self._probe)
        if files.exists(place):
            files.rm_file(place)

    def _ask(self, node: Node) -> None:
        with fsspec.open(self._probe, "wb"):
            pass
        task = ray.remote(_reporter()).options(
            num_cpus=0,
            max_retries=0,
            name=f"xsweep preflight of {node.name}",
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        )
        gpus = node.resources.get("GPU", 0.0)
        self._pending[task.remote(PACKAGES, self._probe, gpus)] = (node, time.time())

    def _collect(self) -> None:
        answered, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)
        for ref in answered:
            node, asked_s = self._pending.pop(ref)
            problem: str | None
            try:
                report: NodeReport = ray.get(ref)
            except ray.exceptions.NodeDiedError:
                continue  # checked again if it comes back
            except ray.exceptions.RayError as error:
                cause = str(error).strip().rpartition("\n")[2] or first_line(error)
                problem = f"{node.name}: preflight task failed: {cause}"
            else:
                problem = find_problem(node.name, report, own_report(), (asked_s, time.time()))
            if problem is None:
                self._fit.add(node.id)
            else:
                self.unfit[node.id] = problem
                log.warning("unfit     %s", problem)


def runs_jobs(node: Node) -> bool:
    """Return whether a node offers CPUs or GPUs; a head or a controller's node may offer none."""
    return any(node.resources.get(key, 0.0) > 0 for key in ("CPU", "GPU"))


def own_report() -> NodeReport:
    """Return this process's report, with which the nodes' reports are compared."""
    return _reporter()(PACKAGES, None, 0)


def find_problem(
    name: str, node: NodeReport, here: NodeReport, asked_between_s: tuple[float, float]
) -> str | None:
    """Describe the first problem of a node and its remedy; None without one.

    `asked_between_s` are the times of the question and of the answer by this host's clock.
    """
    for package, ours in here["versions"].items():
        theirs = node["versions"].get(package)
        if ours and theirs is None:
            return f"{name} lacks {package}: pip install {package}=={ours} there"
        # PyTorch names its build after a plus sign: +cpu here and +cu130 there may work together.
        if ours and theirs and theirs.partition("+")[0] != ours.partition("+")[0]:
            return f"{name} has {package} {theirs}, here it is {ours}: install the same everywhere"
    if not node["sees_probe"]:
        return (
            f"{name} does not see the store: a file written here is not there"
            f"{' (' + node['write_error'] + ')' if node['write_error'] else ''}. Give a folder "
            "that all nodes mount at the same path, or an object store, with --store or "
            "XSWEEP_STORE"
        )
    if node["write_error"]:
        return f"{name} cannot write the store ({node['write_error']}): check permissions there"
    behind_s = asked_between_s[0] - node["clock_s"]
    ahead_s = node["clock_s"] - asked_between_s[1]
    if max(behind_s, ahead_s) > LARGEST_SKEW_S:
        direction = "behind" if behind_s > ahead_s else "ahead"
        return (
            f"{name}'s clock is {max(behind_s, ahead_s):.0f} s {direction}: set it (chrony or "
            "ntpd); otherwise logs and file ages are misread"
        )
    if node["gpu_error"]:
        return (
            f"{name} offers GPUs, but PyTorch cannot use them: {node['gpu_error']}. Check "
            "nvidia-smi, the driver and PyTorch's build there"
        )
    return None


def _reporter() -> Callable[[Sequence[str], str | None, float], NodeReport]:
    """Return the function that reports on a node.

    Nested, so that Ray sends its code: a node may lack xsweep or have an older version.
    """

    def report(packages: Sequence[str], probe: str | None, gpus: float) -> Any:
        import os
        import subprocess
        import sys
        import time
        import uuid
        from contextlib import suppress
        from importlib import metadata

        def installed(package: str) -> str | None:
            try:
                return metadata.version(package)
            except metadata.PackageNotFoundError:
                return None

        versions = {"xsweep": None, **{name: installed(name) for name in packages}}
        with suppress(ImportError):
            import xsweep

            versions["xsweep"] = xsweep.__version__
        seen, write_error = probe is None, None
        if probe is not None:
            try:
                import fsspec

                files, place = fsspec.url_to_fs(probe)
                for _ in range(20):  # network file systems show a new file after a while
                    files.invalidate_cache()
                    if seen := files.exists(place):
                        break
                    time.sleep(0.25)
                if seen:
                    own = f"{place}.{uuid.uuid4().hex}"
                    files.pipe_file(own, b"x")
                    files.rm_file(own)
            except Exception as error:  # every object store has errors of its own
                write_error = getattr(error, "strerror", None) or str(error)
        gpu_error = None
        if gpus:
            # In a process of its own: from this one, which reserved none, Ray hides them.
            count = "import torch; torch.cuda.init(); print(torch.cuda.device_count())"
            done = subprocess.run(
                [sys.executable, "-c", count],
                env={k: value for k, value in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"},
                capture_output=True,
                text=True,
            )
            if done.returncode:
                gpu_error = done.stderr.strip().rpartition("\n")[2]
            elif int(done.stdout) < gpus:
                gpu_error = f"it sees {int(done.stdout)} of {gpus:g}"
        return {
            "versions": {**versions, "Python": "{}.{}".format(*sys.version_info)},
            "sees_probe": seen,
            "write_error": write_error,
            "clock_s": time.time(),
            "gpu_error": gpu_error,
        }

    return report
