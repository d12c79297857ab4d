"""A sweep at all stages of its life, a server of `xsweep serve` over it, and a client."""

import http.client
import json
import threading
from pathlib import Path
from typing import NamedTuple

from finished import OWNER, finish_one, submit_small

from xsweep.db import jobs
from xsweep.db.engine import connect
from xsweep.db.status import list_jobs
from xsweep.orchestrator.serve import open_server
from xsweep.orchestrator.serve.pages import Site
from xsweep.orchestrator.storage.store import Store

NASTY = "<script>alert('x')</script> & \"quoted\""


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str


class Served(NamedTuple):
    """A running server and what it serves."""

    url: str
    store: Path
    ids: dict[str, int]
    """Job ids by name."""

    def get(self, path: str, *, verb: str = "GET", host: str | None = None) -> Reply:
        address = self.url.removeprefix("http://")
        connection = http.client.HTTPConnection(address, timeout=30)
        headers = {} if host is None else {"Host": host}
        connection.request(verb, path, headers=headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return Reply(answer.status, dict(answer.headers), text)


def half_done(folder: Path) -> tuple[str, Path]:
    """Most of the small grid done; one training runs, one evaluation failed; with curves and logs.

    Gives the database's URL and the store.
    """
    engine, store = submit_small(folder), folder / "store"
    seen = set()
    while claims := jobs.claim(engine, owner=OWNER, limit=1, lease_s=600):
        [claim] = claims
        if claim.kind == "train" and claim.token == 1 and "train" not in seen:
            seen.add("train")
            jobs.fail(
                engine, claim.lease, failure="NODE", reason="the node is gone", retry_after_s=0
            )
            continue
        if claim.kind == "evaluate" and "evaluate" not in seen:
            seen.add("evaluate")
            jobs.fail(engine, claim.lease, failure="DATA", reason=f"{NASTY}\nmore of it")
            continue
        if claim.kind == "train" and "L6" in claim.name and claim.name.endswith("s2"):
            running(engine, store, claim)
            continue
        write_log(store, finish_one(engine, store, claim))
    engine.dispose()
    return f"sqlite:///{folder / '.xsweep' / 'xsweep.db'}", store


def running(engine, store: Path, claim: jobs.Claim) -> None:
    """An attempt at step 480 of 1,000, with its metrics and its log."""
    out = f"jobs/train/{claim.identity}/attempt-{claim.token}"
    place = jobs.Place(actor="a", node="", folder=out, log=f"{out}.log")
    jobs.mark_started(engine, {claim.lease: place})
    progress = {"done": 480, "total": 1000, "loss": 0.42, "pairs_per_s": 21.5, "left_s": 90.0}
    progress = {claim.lease: {**progress, "node": "gpu-node-1"}}
    jobs.renew(engine, [claim.lease], lease_s=600, progress=progress)
    (store / out).mkdir(parents=True)
    records = [
        {"step": step, "loss": 2.0 / step**0.3, "lr": 1e-4 * (1 - step / 1000), "pairs_per_s": 21.5}
        | ({"validation": 0.5 + step / 2000} if step % 96 == 0 else {})
        for step in range(1, 481)
    ]
    lines = "\n".join(map(json.dumps, records))
    (store / out / "metrics.jsonl").write_text(f'{lines}\n{{"step": 481, "lo')
    write_log(store, out)


def write_log(store: Path, folder: str) -> None:
    (store / f"{folder}.log").write_text("".join(f"{n}/1000  loss {NASTY}\n" for n in range(2000)))


class Serving:
    """`with Serving(url, store) as served:` a server on a free port, ended afterwards."""

    def __init__(self, url: str, store: Path) -> None:
        self.engine = connect(url, read_only=True)
        self.server = open_server(Site(self.engine, Store(store), "the job table").respond, 0)
        ids = {row.name: row.job_id for row in list_jobs(self.engine)}
        self.served = Served(f"http://127.0.0.1:{self.server.server_address[1]}", store, ids)

    def __enter__(self) -> Served:
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self.served

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.engine.dispose()
