"""A worker that waits. Apart from the benchmarks, so that it imports no more than a real one."""

import json
from pathlib import Path

from xsweep.evaluator.data.files import write_manifest
from xsweep.orchestrator.runtime.worker import Task, Worker


class Waiter(Worker):
    """A worker whose every job waits for the seconds of its spec and leaves a small folder."""

    def _work(self, task: Task) -> None:
        # an event and not a sleep, as a job leaves at once when it is told to stop
        self._stop.wait(task["spec"]["seconds"])
        self._report(1, 1)
        out = Path(task["out"])
        (out / "summary.json").write_text(json.dumps({"pairs": 1}))
        (out / "provenance.json").write_text(json.dumps({"spec": task["spec"]}))
        if task["kind"] == "evaluate":
            scores = {f"q{number}": 0.5 for number in range(50)}
            (out / "per_query.json").write_text(json.dumps({"nDCG@10": scores}))
        write_manifest(out)
