"""A training's curves: `metrics.jsonl`, and the same figures as TensorBoard scalars."""

import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from xsweep.trainer.result import writing

LINES = 2000


class MetricsLog(AbstractContextManager["MetricsLog"]):
    """Writes records `{"step": n, figure: value, ...}`, about 2,000 for each training."""

    def __init__(self, folder: Path, steps: int, kept: Sequence[dict] = ()) -> None:
        """`kept` are the records of an earlier attempt up to the step where this one resumes."""
        self.every_steps = max(1, steps // LINES)
        self.file = (folder / "metrics.jsonl").open("w", encoding="utf-8")
        self.board = SummaryWriter(str(folder / "tensorboard"))
        for record in kept:
            self._write(record)

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.board.close()

    def add(self, record: dict[str, float]) -> None:
        """Writes a record if it is due; one with a validation always is."""
        if record["step"] % self.every_steps == 0 or "validation" in record:
            self._write(record)

    def _write(self, record: dict[str, float]) -> None:
        with writing(Path(self.file.name)):
            self.file.write(json.dumps(record) + "\n")
            self.file.flush()
        step = int(record["step"])
        for name, value in record.items():
            if name != "step":
                self.board.add_scalar(name, value, step)


def read_metrics(folders: Iterable[Path], last_step: int) -> list[dict]:
    """The records up to a step, from the attempt that has most of them."""
    kept: list[dict] = []
    for path in (folder / "metrics.jsonl" for folder in folders):
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        # A killed process may have written half a line.
        records = [json.loads(line) for line in lines if line.endswith("}")]
        kept = max(kept, [record for record in records if record["step"] <= last_step], key=len)
    return kept
