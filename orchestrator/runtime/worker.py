"""The worker: a detached Ray actor that runs jobs one after the other and outlives its controller.

It knows neither the database nor its credentials. It gets a task (paths and a spec), answers which
job and token it runs, and classifies a failure itself, where the exception still has its type.

Failure classes: decided where the failure happens, while the exception still has its type.

CONFIG and DATA are the user's, OOM_GPU, OOM_HOST and NAN the run's, HANG, PREEMPTED, NODE and
INFRA the machines', CANCELLED somebody's wish, UNKNOWN the rest. How often each may be retried
stands in `xsweep.db.schema`.
"""

import contextlib
import errno
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypedDict

from xsweep.errors import Stopped, XsweepError
from xsweep.orchestrator.runtime.import_path import put_user_folders_last
from xsweep.orchestrator.storage.store import Store

_INFRA_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.EMFILE}


_LOST_PEER = ("gloo/transport", "Connection closed by peer", "NCCL", "DistBackendError")
"""What an exchange between ranks says when another rank is gone."""


def classify(error: BaseException) -> tuple[str, str]:
    """The failure class of an exception and one line that says what happened."""
    reason = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
    if isinstance(error, XsweepError):
        return error.failure, str(error)
    # Torch and pydantic are matched by name: this module is imported where neither is loaded.
    names = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
    if any(name.startswith("torch") and name.endswith("OutOfMemoryError") for name in names):
        return "OOM_GPU", reason
    if any(sign in reason for sign in _LOST_PEER):
        return "NODE", reason
    # The CPU's allocator has no exception of its own.
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in reason:
        return "OOM_HOST", reason
    if "pydantic_core._pydantic_core.ValidationError" in names or isinstance(error, ImportError):
        return "CONFIG", reason
    if isinstance(error, OSError) and error.errno in _INFRA_ERRNOS:
        return "INFRA", reason
    return "UNKNOWN", reason


PRINT_EVERY_S = 10.0


class Task(TypedDict):
    """One attempt at one job, as the controller hands it over; every path is absolute."""

    job_id: int
    token: int
    kind: str
    name: str
    spec: dict[str, Any]
    inputs: dict[str, str]
    """Role of each parent and the folder of its accepted result."""
    out: str
    log: str
    previous: list[str]
    """Folders of earlier attempts at the same job, newest first: what they saved to resume from."""
    root: str
    """The store's, in which all these folders lie."""
    remote: str | None
    """Where the store is, if the root has copies only, see `xsweep.orchestrator.storage.store`."""


class Outcome(TypedDict):
    """How an attempt ended, as its worker saw it."""

    state: str
    """`finished`, `failed` or `stopped`."""
    failure: str | None
    reason: str | None


class Status(TypedDict):
    """What a worker answers when asked."""

    job_id: int | None
    token: int | None
    node: str
    node_id: str
    """Ray's name of the node."""
    pid: int
    progress: dict[str, Any]


class Worker:
    """Runs one task at a time in a thread of its own, so that it can answer while it works."""

    def __init__(self, gpus: float) -> None:
        put_user_folders_last()
        logging.basicConfig(format="%(message)s", stream=sys.stdout, force=True)
        for room in ("evaluator", "trainer"):
            logging.getLogger(f"xsweep.{room}").setLevel(logging.INFO)
        if not gpus:
            # A job that asked for no GPU must see none, or it takes memory from those that did.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self._task: Task | None = None
        self._outcome: Outcome | None = None
        self._progress: dict[str, Any] = {}
        self._rank = 0
        self._printed_s = 0.0
        self._stop = threading.Event()
        self._halt = threading.Event()
        self._ended = threading.Event()

    def meeting_point(self) -> tuple[str, int]:
        """Address of this node and a free port of it, where the ranks of a gang can meet."""
        address = ray_address()
        with socket.socket() as probe:
            probe.bind((address, 0))
            return address, probe.getsockname()[1]

    def run(
        self, task: Task, rank: int = 0, ranks: int = 1, meeting: tuple[str, int] | None = None
    ) -> Outcome | None:
        """Do the task, or this rank's part of it, and say how it ended."""
        if meeting:
            join(rank, ranks, meeting)
        if rank:
            # Ranks share the folder; each tells its own story.
            task = {**task, "log": f"{task['out']}.rank-{rank}.log"}
        self._task, self._outcome, self._progress, self._rank = task, None, {}, rank
        self._stop.clear()
        self._halt.clear()
        self._ended.clear()
        # Not in the calling thread: the caller may die, the work goes on for whoever adopts it.
        threading.Thread(target=self._run, args=(task,), name=task["name"], daemon=True).start()
        return self.outcome(task["token"])

    def outcome(self, token: int) -> Outcome | None:
        """Wait for the end of the task with this token; None if the worker has another one."""
        if self._task is None or self._task["token"] != token:
            return None
        self._ended.wait()
        return self._outcome

    def status(self) -> Status:
        """The task in hand, where it runs and how far it is."""
        import ray

        task = self._task
        return {
            "job_id": task["job_id"] if task else None,
            "token": task["token"] if task else None,
            "node": os.uname().nodename,
            "node_id": ray.get_runtime_context().get_node_id(),
            "pid": os.getpid(),
            "progress": dict(self._progress),
        }

    def stop(self) -> None:
        """Ask the task to save what it has and leave at its next report."""
        self._stop.set()

    def halt(self, token: int) -> None:
        """End the trial with this token after its next report: others of its search are better."""
        if self._task and self._task["token"] == token:
            self._halt.set()

    def _report(self, done: int, total: int, **figures: Any) -> bool:
        self._progress = {"done": done, "total": total, **figures}
        if done == total or time.monotonic() - self._printed_s > PRINT_EVERY_S:
            self._printed_s = time.monotonic()
            shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            print(f"{done}/{total}  {shown}", flush=True)
        if self._stop.is_set():
            raise Stopped("left on request")
        return self._halt.is_set()

    def _run(self, task: Task) -> None:
        outcome: Outcome = {"state": "finished", "failure": None, "reason": None}
        began_s = time.monotonic()
        try:
            Path(task["out"]).mkdir(parents=True, exist_ok=True)
            store = Store(Path(task["root"]), task["remote"])
            with (
                store.uploading(self._uploads(task), _inside(task, "log")),
                _output_to(Path(task["log"])),
            ):
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
            # Whatever it was, it ends this attempt and must be told; the thread has no other ear.
            state = "stopped" if isinstance(error, Stopped) else "failed"
            failure, reason = classify(error)
            outcome = {"state": state, "failure": failure, "reason": reason}
        self._outcome = outcome
        self._ended.set()

    def _uploads(self, task: Task) -> str | None:
        """The folder that this process takes to a remote store: the first rank's affair."""
        return None if self._rank else _inside(task, "out")

    def _work(self, task: Task) -> None:
        inputs = {role: _at_hand(task, folder) for role, folder in task["inputs"].items()}
        kind, spec, out = task["kind"], task["spec"], Path(task["out"])
        previous = [_at_hand(task, folder) for folder in task["previous"]]
        if kind == "train":
            from xsweep.trainer.train import run_job as train

            train(kind, spec, inputs, out, self._report, resume_from=previous)
        elif kind == "search":
            from xsweep.trainer.search import run_job as choose

            choose(kind, spec, inputs, out)
        else:
            from xsweep.evaluator.jobs import run_job as work

            work(kind, spec, inputs, out, self._report, resume_from=previous)


def join(rank: int, ranks: int, meeting: tuple[str, int]) -> None:
    """Describe a gang to the trainer in torchrun's variables."""
    address, port = meeting
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        # Ray shows each rank its own cards only, so that the first one it sees is the right one.
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }
    # Where a host's own name leads to its loopback, the ranks would look for each other there.
    interface = interface_of(ray_address())
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)


def ray_address() -> str:
    """The address under which the other nodes know this one."""
    import ray

    return ray.util.get_node_ip_address()


def interface_of(address: str) -> str | None:
    """Name of the network interface that has the address; None where none has."""
    import psutil

    for name, bound in psutil.net_if_addrs().items():
        if any(each.address == address for each in bound):
            return name
    return None


def _at_hand(task: Task, folder: str) -> Path:
    store = Store(Path(task["root"]), task["remote"])
    return store.fetch(Path(folder).relative_to(store.root).as_posix())


def _inside(task: Task, path: Literal["out", "log"]) -> str:
    return Path(task[path]).relative_to(task["root"]).as_posix()


@contextlib.contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Send everything this process prints, native libraries included, to the attempt's log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab", buffering=0) as out:
        kept = [os.dup(1), os.dup(2)]
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError):  # of a full disk: the job has told already
                    stream.flush()
            for number, copy in enumerate(kept, start=1):
                os.dup2(copy, number)
                os.close(copy)
