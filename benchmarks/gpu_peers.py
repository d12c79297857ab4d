"""What `gpu.py` measures of sentence-transformers, in an environment that has it.

Reads a job as JSON on stdin, prints a line of JSON for every row. bf16, PyTorch's
scaled-dot-product attention where the family has it, flash-attention too where it is installed;
the best batch size of some for `predict`.
"""

import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path

import torch


def main():
    """All rows within the time limit."""
    job = json.load(sys.stdin)
    until = time.perf_counter() + job["limit_s"]
    for shape, folder in job["models"].items():
        for length, texts in job["pairs"].items():
            show(f"predict: {shape}, {length}", until, predict, job, folder, texts, length)
        for objective, lists in job["lists"].items():
            show(f"trainer: {shape}, {objective}", until, train, job, folder, lists, objective)


def show(row, until, measure, *arguments):
    """Prints a row's figures, or why there are none."""
    if time.perf_counter() > until:
        figures = {"left_out": "the time limit was reached"}
    else:
        try:
            figures = measure(*arguments)
        except Exception as error:
            figures = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
    print(json.dumps({"row": row, **figures}), flush=True)


def attentions(folder):
    """Names of the attention implementations to try."""
    if "DebertaV2" in Path(folder, "config.json").read_text():
        return ["eager"]
    flash = importlib.util.find_spec("flash_attn") and torch.cuda.is_available()
    return ["sdpa", *(["flash_attention_2"] if flash else [])]


def wait():
    """The time, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def predict(job, folder, texts, length):
    """Pairs per second of `predict`, tokenising included, by the best attention and batch size."""
    from sentence_transformers import CrossEncoder

    best = {"pairs_per_s": 0.0}
    on_gpu = job["device"] == "cuda"
    for attention in attentions(folder):
        model = CrossEncoder(
            folder,
            device=job["device"],
            max_length=job["tokens"][length],
            model_kwargs={"attn_implementation": attention, "dtype": torch.bfloat16},
        )
        for size in (64, 256) if on_gpu else (8,):
            few = min(len(texts), 256 if on_gpu else 4)
            settings = {"batch_size": size, "show_progress_bar": False}
            model.predict(texts[:few], **settings)
            started = wait()
            model.predict(texts[:few], **settings)
            count = int(few / (wait() - started) * job["seconds"])
            count = min(len(texts), max(few, count))
            started = wait()
            model.predict(texts[:count], **settings)
            rate = count / (wait() - started)
            if rate > best["pairs_per_s"]:
                best = {"pairs_per_s": round(rate, 2), "batch": size, "attention": attention}
    return best


def train(job, folder, lists, objective):
    """Pairs per second of CrossEncoderTrainer's steps, bf16 autocast, dropout on.

    ListNetLoss with one relevant document is infonce's work, RankNetLoss distill_ranknet's.
    """
    from datasets import Dataset
    from sentence_transformers.cross_encoder import (
        CrossEncoder,
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
    )
    from sentence_transformers.cross_encoder.losses import ListNetLoss, RankNetLoss
    from transformers import TrainerCallback

    marks = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            marks.append(wait())
            if len(marks) > 2 and marks[-1] - marks[0] > job["seconds"]:
                control.should_training_stop = True
            return control

    model = CrossEncoder(
        folder,
        device=job["device"],
        max_length=288,
        model_kwargs={"attn_implementation": attentions(folder)[0]},
    )
    batch = job["batch_queries"][objective]
    size = len(lists[0][1])
    labels = [1.0] + [0.0] * (size - 1)
    if objective == "distill_ranknet":
        labels = [float(size - rank) for rank in range(size)]
    while len(lists) < 500 * batch:
        lists = lists + lists
    rows = Dataset.from_dict(
        {
            "query": [query for query, _ in lists],
            "docs": [documents for _, documents in lists],
            "labels": [labels] * len(lists),
        }
    )
    loss = ListNetLoss(model) if objective == "infonce" else RankNetLoss(model)
    with tempfile.TemporaryDirectory() as out:
        arguments = CrossEncoderTrainingArguments(
            output_dir=out,
            max_steps=500,
            per_device_train_batch_size=batch,
            bf16=True,
            use_cpu=job["device"] == "cpu",
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = CrossEncoderTrainer(
            model=model, args=arguments, train_dataset=rows, loss=loss, callbacks=[Clock()]
        )
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    steps = len(marks) - 1
    figures = {"pairs_per_s": round(steps * batch * size / (marks[-1] - marks[0]), 2)}
    if torch.cuda.is_available():
        figures["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return figures | {"steps": steps, "attention": attentions(folder)[0]}


if __name__ == "__main__":
    main()
