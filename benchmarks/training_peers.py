"""Trains what `training.py` gives it with other libraries, in an environment that has them.

Reads {"way", "model", "texts", "batch", "bf16", "tokens", "lr"} as JSON on stdin; prints what it
measured as JSON. `texts` are pairs, a relevant and a random document in turn.
"""

import json
import resource
import sys
import tempfile
import time
from types import SimpleNamespace

import torch


class Clock:
    """Wall and CPU seconds at the end of every step; the first step warms up."""

    def __init__(self):
        self.marks = []

    def mark(self):
        self.marks.append((time.perf_counter(), time.process_time()))

    def rates(self, batch):
        first, last = self.marks[0], self.marks[-1]
        pairs = batch * (len(self.marks) - 1)
        return {
            "pairs_per_s": pairs / (last[0] - first[0]),
            "pairs_per_cpu_s": pairs / (last[1] - first[1]),
        }


def sentence_transformers(job, clock):
    """Its CrossEncoderTrainer with BinaryCrossEntropyLoss; batches in the order of the texts."""
    from datasets import Dataset
    from sentence_transformers.cross_encoder import (
        CrossEncoder,
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
    )
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
    from torch.utils.data import BatchSampler, SequentialSampler
    from transformers import TrainerCallback

    losses = []

    class InOrder(CrossEncoderTrainer):
        def get_batch_sampler(self, dataset, batch_size, drop_last, **_):
            return BatchSampler(SequentialSampler(dataset), batch_size, drop_last)

    class Marks(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            clock.mark()

    class Watched(BinaryCrossEntropyLoss):
        def forward(self, *arguments, **settings):
            value = super().forward(*arguments, **settings)
            losses.append(value.item())
            return value

    model = CrossEncoder(job["model"], device="cpu", max_length=job["tokens"])
    queries, documents = zip(*job["texts"], strict=True)
    labels = [1.0, 0.0] * (len(queries) // 2)
    rows = Dataset.from_dict({"query": queries, "document": documents, "label": labels})
    with tempfile.TemporaryDirectory() as out:
        arguments = CrossEncoderTrainingArguments(
            output_dir=out,
            max_steps=len(queries) // job["batch"],
            per_device_train_batch_size=job["batch"],
            learning_rate=job["lr"],
            lr_scheduler_type="constant",
            bf16=job["bf16"],
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = InOrder(
            model=model,
            args=arguments,
            train_dataset=rows,
            loss=Watched(model),
            callbacks=[Marks()],
        )
        trainer.train()
    return losses


def lightning_ir(job, clock):
    """Its mono cross-encoder with RankNet on (relevant, random), one list of two for each query.

    It has no pointwise loss. The loop is a plain one: what Lightning's own adds is not counted.
    """
    from lightning_ir import CrossEncoderModule
    from lightning_ir.loss.pairwise import RankNet
    from lightning_ir.models import MonoConfig

    config = MonoConfig(query_length=32, doc_length=job["tokens"] - 35)
    module = CrossEncoderModule(model_name_or_path=job["model"], config=config).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=job["lr"], weight_decay=0)
    losses = []
    for start in range(0, len(job["texts"]), job["batch"]):
        pairs = job["texts"][start : start + job["batch"]]
        batch = SimpleNamespace(
            queries=[query for query, _ in pairs[::2]],
            docs=[[pairs[n][1], pairs[n + 1][1]] for n in range(0, len(pairs), 2)],
            targets=torch.tensor([[1.0, 0.0]] * (len(pairs) // 2)),
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=job["bf16"]):
            output = module.forward(batch)
        output.scores = output.scores.float().view(-1, 2)
        loss = RankNet().compute_loss(output, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.mark()
        losses.append(loss.item())
    return losses


WAYS = {"sentence-transformers": sentence_transformers, "lightning-ir": lightning_ir}


def main():
    """One JSON document in, one line out."""
    job = json.load(sys.stdin)
    clock = Clock()
    losses = WAYS[job["way"]](job, clock)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mean = sum(losses) / len(losses)
    print(json.dumps(clock.rates(job["batch"]) | {"loss": mean, "peak_mib": peak_kib / 1024}))


if __name__ == "__main__":
    main()
