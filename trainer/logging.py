"""A training's curves: `metrics.jsonl` and the same figures as TensorBoard scalars."""

import json
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from torch.utils.tensorboard import SummaryWriter

from xsweep.trainer.checkpoint import writing

LINES = 2000


class MetricsLog:
    """Writes records `{"step": n, figure: value, ...}`, about 2,000 of one training."""

    def __init__(self, folder: Path, steps: int, kept: Iterable[dict] = ()) -> None:
        """`kept` are the records of an earlier attempt up to the step where this one goes on."""
        self.every_steps = max(1, steps // LINES)
        kept = list(kept)
        self.file = (folder / "metrics.jsonl").open("w", encoding="utf-8")
        self.board = SummaryWriter(str(folder / "tensorboard"))
        for record in kept:
            self._write(record)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.file.close()
        self.board.close()

    def add(self, record: dict[str, float]) -> None:
        """Keeps a record if it is due, which one with a validation always is."""
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
    """The records up to a step, from the attempt that kept most of them."""
    kept: list[dict] = []
    for path in (folder / "metrics.jsonl" for folder in folders):
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        # A killed writer may have left half a line.
        records = [json.loads(line) for line in lines if line.endswith("}")]
        kept = max(kept, [record for record in records if record["step"] <= last_step], key=len)
    return kept
