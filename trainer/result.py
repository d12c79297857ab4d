"""The result folder of a training or a search: curves, model, summary, provenance and manifest.

The curves are `metrics.jsonl`, and the same figures as TensorBoard scalars.
"""

import errno
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.tensorboard import SummaryWriter
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from xsweep.errors import SetupError
from xsweep.evaluator.data.files import write_manifest
from xsweep.evaluator.models.cross_encoder import quiet_loading
from xsweep.trainer.card import Model, model_card
from xsweep.trainer.specs import TrainSpec

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
LINES = 2000


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises SetupError if the block fails to write `path`; finished checkpoints are kept."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        full = number in FULL or any(f"os error {code}" in str(error) for code in FULL)
        hint = "the disk is full: make room" if full else "check the disk and its permissions"
        raise SetupError(
            f"{path}: cannot be written ({error}); {hint} and run the training again, it resumes "
            "from its last checkpoint"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file that `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON with a final newline."""
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def export_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    spec: TrainSpec,
    summary: dict,
    provenance: dict,
) -> None:
    """Writes fp32 weights, configuration, tokenizer and a model card.

    `CrossEncoder(folder).predict` gives raw logits, as `AutoModelForSequenceClassification` does.
    Without the key set here, sentence-transformers applies a sigmoid to one-logit scores, which
    saturates and ties them.
    """
    model.config.sentence_transformers = {
        "activation_fn": f"{torch.nn.Identity.__module__}.{torch.nn.Identity.__qualname__}"
    }
    # Saving unwraps engines, for which Accelerate would import DeepSpeed: 2 s, where none is used.
    unwrapping: Any = sys.modules.get("accelerate.utils.other")
    if unwrapping:
        unwrapping.is_deepspeed_available = lambda: "deepspeed" in sys.modules
    with quiet_loading(), writing(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        card = model_card(Model(spec=spec, summary=summary, provenance=provenance))
        (folder / "README.md").write_text(card, encoding="utf-8")


def write_result(out: Path, summary: dict, provenance: dict) -> None:
    """Writes summary.json and provenance.json, removes checkpoints, and closes the folder.

    Raises SetupError if the disk is full or refuses.
    """
    with writing(out):
        write_json(out / "summary.json", summary)
        write_json(out / "provenance.json", provenance)
        # A failure up to here can resume.
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        write_manifest(out)


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
