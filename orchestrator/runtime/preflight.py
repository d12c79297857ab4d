"""Whether a node is fit to work: same versions, the same store, a clock that agrees.

Each node is asked once, by a small task that needs nothing of ours there. One that answers wrongly
is never used, and says why; one that joins later is asked when it joins.
"""

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import fsspec
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from xsweep.errors import SetupError
from xsweep.orchestrator.runtime.placement import Node
from xsweep.orchestrator.storage.store import Store

log = logging.getLogger("xsweep")


PACKAGES = ("ray", "torch", "transformers", "tokenizers", "safetensors", "deepspeed", "ranx")
"""What jobs import, and whose versions can change a result."""


LARGEST_SKEW_S = 30.0
"""Leases follow the database's clock alone; logs, events and files' ages would be misread."""


ANSWERS_S = 90.0
"""How long a node may take for its first process."""


class Answer(TypedDict):
    """What a node says of itself."""

    python: str
    xsweep: str | None
    packages: dict[str, str | None]
    sees_probe: bool
    writes: str | None
    """Why the store cannot be written there; None where it can."""
    clock_s: float


class Preflight:
    """Lets nodes in that are fit for work; the others are named once and left alone."""

    def __init__(self, store: Store) -> None:
        self._probe = f"{store.url or store.root}/.probe-{uuid.uuid4().hex}"
        self._asked: dict[str, tuple[Node, ray.ObjectRef, float]] = {}
        self._fit: set[str] = set()
        self.unfit: dict[str, str] = {}
        """What is wrong, by node's id."""

    def admit(self, nodes: Sequence[Node]) -> list[Node]:
        """Those of the nodes that are fit, as far as is known by now; others are being asked."""
        for node in nodes:
            known = node.id in self._fit or node.id in self._asked or node.id in self.unfit
            if not known and runs_jobs(node):
                self._ask(node)
        if self._asked:
            self._hear()
        return [node for node in nodes if node.id in self._fit]

    def require(self, nodes: Callable[[], Sequence[Node]]) -> None:
        """Wait until the nodes of now have answered. Raises SetupError where one is unfit."""
        deadline = time.monotonic() + ANSWERS_S
        self.admit(nodes())
        while self._asked and time.monotonic() < deadline:
            time.sleep(0.2)
            self.admit(nodes())
        if self.unfit:
            problems = "\n  ".join(self.unfit.values())
            raise SetupError(f"the cluster is not fit for work:\n  {problems}")

    def close(self) -> None:
        """Remove the probe file."""
        files, place = fsspec.url_to_fs(self._probe)
        if files.exists(place):
            files.rm_file(place)

    def _ask(self, node: Node) -> None:
        with fsspec.open(self._probe, "wb"):
            pass
        _, probe = _questions()
        task = ray.remote(probe).options(
            num_cpus=0,
            max_retries=0,
            name=f"xsweep: is {node.name} fit?",
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        )
        answer = task.remote(self._probe, PACKAGES)
        self._asked[node.id] = (node, answer, time.time())

    def _hear(self) -> None:
        refs = {ref: node_id for node_id, (_, ref, _) in self._asked.items()}
        told, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0)
        for ref in told:
            node, _, asked_at = self._asked.pop(refs[ref])
            try:
                answer: Answer = ray.get(ref)
            except ray.exceptions.NodeDiedError:
                continue  # it is asked again where it comes back
            except ray.exceptions.RayError as error:
                lines = str(error).strip().splitlines()
                problem: str | None = f"{node.name} runs nothing: {lines[-1] if lines else error}"
            else:
                problem = judge(node.name, answer, expected(), (asked_at, time.time()))
            if problem is None:
                self._fit.add(node.id)
                continue
            self.unfit[node.id] = problem
            log.warning("unfit     %s", problem)


def runs_jobs(node: Node) -> bool:
    """Whether jobs could ever be placed there: a head or a controller's node offers nothing."""
    return any(node.resources.get(key, 0.0) > 0 for key in ("CPU", "GPU"))


def expected() -> Answer:
    """This process's own answer, which the nodes' are compared with."""
    versions, _ = _questions()
    answer: Answer = versions(PACKAGES) | {"sees_probe": True, "writes": None}
    return answer


def judge(name: str, told: Answer, here: Answer, between_s: tuple[float, float]) -> str | None:
    """What is wrong with a node, in words; None where nothing is.

    `between_s` are this clock's times of the question and of the answer.
    """
    if told["xsweep"] is None:
        return f"{name} has no xsweep: install {here['xsweep']} there, as it is here"
    if told["xsweep"] != here["xsweep"]:
        return f"{name} has xsweep {told['xsweep']}, here it is {here['xsweep']}: install the same"
    for package, ours in here["packages"].items():
        theirs = told["packages"].get(package)
        if ours and theirs is None:
            return f"{name} lacks {package}: pip install {package}=={ours} there"
        if ours and theirs != ours:
            return f"{name} has {package} {theirs}, here it is {ours}: install the same everywhere"
    if told["python"] != here["python"]:
        return f"{name} has Python {told['python']}, here it is {here['python']}"
    if not told["sees_probe"]:
        return (
            f"{name} does not see the store: a file written here is not there"
            f"{' (' + told['writes'] + ')' if told['writes'] else ''}. Give a folder that "
            "all nodes share, at the same path, or an object store, with --store or XSWEEP_STORE"
        )
    if told["writes"]:
        return f"{name} cannot write the store ({told['writes']}): see to its rights there"
    early_s, late_s = between_s[0] - told["clock_s"], told["clock_s"] - between_s[1]
    if max(early_s, late_s) > LARGEST_SKEW_S:
        direction = "behind" if early_s > late_s else "ahead"
        return (
            f"{name}'s clock is {max(early_s, late_s):.0f} s {direction}: set it (chrony or ntpd); "
            "logs and ages of files would be misread"
        )
    return None


def _questions() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What is asked: which versions there are; these and whether the probe is seen.

    Nested so that Ray sends their code: a node may lack ours or have an older one.
    """

    def versions(packages: Sequence[str]) -> dict[str, Any]:
        import sys
        import time
        from importlib import metadata

        def installed(package: str) -> str | None:
            try:
                return metadata.version(package)
            except metadata.PackageNotFoundError:
                return None

        try:
            import xsweep

            ours = xsweep.__version__
        except ImportError:
            ours = None
        return {
            "python": "{}.{}".format(*sys.version_info),
            "xsweep": ours,
            "packages": {name: installed(name) for name in packages},
            "clock_s": time.time(),
        }

    def probe(path: str, packages: Sequence[str]) -> dict[str, Any]:
        import time
        import uuid

        seen, refused = False, None
        try:
            import fsspec

            files, place = fsspec.url_to_fs(path)
            for _ in range(20):  # network file systems show a new file after a while
                files.invalidate_cache()
                if seen := files.exists(place):
                    break
                time.sleep(0.25)
            if seen:
                mine = f"{place}.{uuid.uuid4().hex}"
                files.pipe_file(mine, b"x")
                files.rm_file(mine)
        except OSError as error:
            refused = error.strerror or str(error)
        except Exception as error:  # every object store has errors of its own
            refused = str(error)
        return {**versions(packages), "sees_probe": seen, "writes": refused}

    return versions, probe
