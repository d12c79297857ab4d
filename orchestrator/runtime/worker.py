"""The worker: a detached Ray actor that runs jobs one after the other and outlives its controller.

It has neither the database nor its credentials. It gets a task (paths and a spec), reports which
job and token it runs, and classifies a failure itself, while the exception still has its type.
"""

import contextlib
import errno
import gc
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

from xsweep.errors import Stopped, XsweepError, field_errors
from xsweep.evaluator.data.files import MANIFEST, read_manifest
from xsweep.evaluator.device import (
    CPU_OUT_OF_MEMORY,
    GPU_OUT_OF_MEMORY,
    release_freed_memory,
    require_gpu,
)
from xsweep.orchestrator.runtime.import_path import put_user_folders_last
from xsweep.orchestrator.runtime.ray_cluster import free_port
from xsweep.orchestrator.storage.store import Store

PRINT_EVERY_S = 10.0

_INFRA_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.EMFILE}

_LOST_PEER = ("gloo/transport", "Connection closed by peer", "NCCL", "DistBackendError")
"""Parts of the errors that a collective operation raises when another rank is gone."""


class Task(TypedDict):
    """One attempt at a job, as the controller passes it on; every path is absolute."""

    job_id: int
    token: int
    kind: str
    name: str
    spec: dict[str, Any]
    inputs: dict[str, str]
    """Folder of each parent's accepted result, by the parent's role."""
    out: str
    log: str
    previous: list[str]
    """Folders of earlier attempts at the same job, newest first: checkpoints may be there."""
    root: str
    """Root of the store, which contains all these folders."""
    remote: str | None
    """URL of the store, where the root has copies only."""


class Outcome(TypedDict):
    """The end of an attempt, or of one rank of it."""

    state: str
    """`finished`, `failed` or `stopped`."""
    failure: str | None
    """Failure class."""
    reason: str | None


class Status(TypedDict):
    """A worker's answer to a status question."""

    job_id: int | None
    token: int | None
    node: str
    """Host name."""
    node_id: str
    """Ray's id of the node."""
    progress: dict[str, Any]


class Worker:
    """Runs one task at a time in a thread of its own, so that it can answer meanwhile."""

    def __init__(self, gpus: float) -> None:
        put_user_folders_last()
        logging.basicConfig(format="%(message)s", stream=sys.stdout, force=True)
        for package in ("evaluator", "trainer"):
            logging.getLogger(f"xsweep.{package}").setLevel(logging.INFO)
        self._gpus = gpus
        if not gpus:
            # A job that asked for no GPU must see none, or it takes memory from those that did.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        elif "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # its older name
            # Batches have many sizes: memory freed by one would not serve another.
            os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
        self._task: Task | None = None
        self._outcome: Outcome | None = None
        self._progress: dict[str, Any] = {}
        self._rank = 0
        self._printed_s = 0.0
        self._stop = threading.Event()
        self._halt = threading.Event()
        self._ended = threading.Event()

    def meeting_point(self) -> tuple[str, int]:
        """Return an address and a free port of this node, where the ranks of a gang can meet."""
        return ray_address(), free_port()

    def run(
        self, task: Task, rank: int = 0, ranks: int = 1, meeting: tuple[str, int] | None = None
    ) -> Outcome | None:
        """Run the task, or this rank's part of it, and return how it ended."""
        if meeting:
            set_rank(rank, ranks, meeting)
        if rank:  # ranks share the folder but write separate logs
            task = {**task, "log": f"{task['out']}.rank-{rank}.log"}
        self._task, self._outcome, self._progress, self._rank = task, None, {}, rank
        for event in (self._stop, self._halt, self._ended):
            event.clear()
        # Not in the calling thread: the caller may die, and the job continues for its successor.
        threading.Thread(target=self._run, args=(task,), name=task["name"], daemon=True).start()
        return self.outcome(task["job_id"], task["token"])

    def outcome(self, job_id: int, token: int) -> Outcome | None:
        """Wait for the end of this attempt; None if the worker has another one."""
        if not self._has(job_id, token):
            return None
        self._ended.wait()
        return self._outcome

    def status(self) -> Status:
        """Return the current task, its progress and its place."""
        import ray

        task = self._task
        return {
            "job_id": task["job_id"] if task else None,
            "token": task["token"] if task else None,
            "node": os.uname().nodename,
            "node_id": ray.get_runtime_context().get_node_id(),
            "progress": dict(self._progress),
        }

    def stop(self) -> None:
        """Ask the task to save a checkpoint and stop at its next progress report."""
        self._stop.set()

    def halt(self, job_id: int, token: int) -> None:
        """End this trial after its next report: it was pruned."""
        if self._has(job_id, token):
            self._halt.set()

    def _has(self, job_id: int, token: int) -> bool:
        return self._task is not None and (
            (self._task["job_id"], self._task["token"]) == (job_id, token)
        )

    def _report(self, done: int, total: int, **figures: Any) -> bool:
        """Record and print progress. True: end early; raises Stopped where a stop was requested."""
        gc.enable()
        self._progress = {"done": done, "total": total, **figures}
        if done == total or time.monotonic() - self._printed_s > PRINT_EVERY_S:
            self._printed_s = time.monotonic()
            shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            print(f"{done}/{total}  {shown}", flush=True)
        if self._stop.is_set():
            raise Stopped("stopped on request")
        return self._halt.is_set()

    def _run(self, task: Task) -> None:
        outcome: Outcome = {"state": "finished", "failure": None, "reason": None}
        began_s = time.monotonic()
        out, log = Path(task["out"]), Path(task["log"])
        # Until the first report: collecting takes a fifth of the time of importing torch.
        gc.disable()
        try:
            out.mkdir(parents=True, exist_ok=True)
            store = Store(Path(task["root"]), task["remote"])
            folder = None if self._rank else _name_in(store, out)  # the first rank uploads it
            with store.uploading(folder, _name_in(store, log)), _output_to(log):
                attempt = f"job {task['job_id']}, token {task['token']}, pid {os.getpid()}"
                print(f"{task['name']} [{attempt}]", flush=True)
                try:
                    self._work(task)
                except BaseException:
                    traceback.print_exc()
                    raise
                finally:
                    print(f"ended after {time.monotonic() - began_s:.1f} s", flush=True)
        except BaseException as error:
            # Any exception ends the attempt; nobody else sees those of this thread.
            state = "stopped" if isinstance(error, Stopped) else "failed"
            failure, reason = classify(error)
            outcome = {"state": state, "failure": failure, "reason": reason}
        gc.enable()
        if "torch" in sys.modules:
            # The next job runs in another thread, and glibc would keep what this one has freed.
            release_freed_memory()
        self._outcome = outcome
        self._ended.set()

    def _work(self, task: Task) -> None:
        if self._gpus:
            require_gpu()  # or PyTorch would go on with the CPU
        store = Store(Path(task["root"]), task["remote"])
        kind, spec, out = task["kind"], task["spec"], Path(task["out"])
        parents = task["inputs"].items()
        inputs = {role: _verified(store, Path(folder)) for role, folder in parents}
        previous = [store.fetch(_name_in(store, Path(folder))) for folder in task["previous"]]
        if kind == "train":
            from xsweep.trainer.train import run_job as train

            train(kind, spec, inputs, out, self._report, resume_from=previous)
        elif kind == "search":
            from xsweep.trainer.search import run_job as search

            search(kind, spec, inputs, out)
        else:
            from xsweep.evaluator.jobs import run_job as evaluate

            evaluate(kind, spec, inputs, out, self._report, resume_from=previous)


def classify(error: BaseException) -> tuple[str, str]:
    """Return the failure class of an exception and a line that describes it.

    CONFIG and DATA are the user's, OOM_GPU, OOM_HOST and NAN the run's, HANG, PREEMPTED, NODE,
    NODE_FULL and INFRA the machines', UNKNOWN the rest; `xsweep.db.schema` has the retries of each.
    """
    reason = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
    if isinstance(error, XsweepError):
        return error.failure, str(error)
    # Torch and pydantic are matched by name: this module is imported where neither is loaded.
    names = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
    has_class = any(
        name.startswith("torch") and name.endswith("OutOfMemoryError") for name in names
    )
    if has_class or any(message in reason for message in GPU_OUT_OF_MEMORY):
        return "OOM_GPU", reason
    if any(part in reason for part in _LOST_PEER):
        return "NODE", reason
    # The CPU's allocator has no exception of its own.
    if isinstance(error, MemoryError) or any(each in reason for each in CPU_OUT_OF_MEMORY):
        return "OOM_HOST", reason
    if "pydantic_core._pydantic_core.ValidationError" in names or isinstance(error, ImportError):
        return "CONFIG", field_errors(error) if hasattr(error, "errors") else reason
    if isinstance(error, OSError) and error.errno in _INFRA_ERRNOS:
        return "INFRA", reason
    return "UNKNOWN", reason


def set_rank(rank: int, ranks: int, meeting: tuple[str, int]) -> None:
    """Describe a gang to the trainer in torchrun's environment variables."""
    address, port = meeting
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        # Ray shows each rank its own GPUs only, so the first that it sees is the right one.
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }
    # If a host's own name resolves to its loopback, the ranks would look for each other there.
    interface = interface_of(ray_address())
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)


def ray_address() -> str:
    """Return the IP address by which other nodes reach this one."""
    import ray

    return ray.util.get_node_ip_address()


def interface_of(address: str) -> str | None:
    """Return the name of the network interface with this address, if any."""
    import psutil

    bound = psutil.net_if_addrs().items()
    return next((name for name, own in bound if address in (each.address for each in own)), None)


@cache
def _verify_once(folder: Path, sealed_ns: int) -> None:
    read_manifest(folder)


def _verified(store: Store, folder: Path) -> Path:
    """Fetch a parent's result and, once in this process, compare its files with its manifest."""
    fetched = store.fetch(_name_in(store, folder))
    manifest = fetched / MANIFEST
    _verify_once(fetched, manifest.stat().st_mtime_ns if manifest.exists() else 0)
    return fetched


def _name_in(store: Store, path: Path) -> str:
    return path.relative_to(store.root).as_posix()


@contextlib.contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Write all output of this process, native libraries included, to the attempt's log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab", buffering=0) as out:
        saved = [os.dup(1), os.dup(2)]
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError):  # a full disk has already failed the job
                    stream.flush()
            for number, copy in enumerate(saved, start=1):
                os.dup2(copy, number)
                os.close(copy)
