"""What `gpu.py` measures of sentence-transformers, in an environment that has it.

    python benchmarks/gpu_peers.py JOB.json

Prints a line of JSON for every row. PyTorch's scaled-dot-product attention where the family has
it, flash-attention too where it is installed: the better one counts, for `predict` also the best
batch size of some. Weights of `predict` are in the job's precision, trainings use autocast.
"""

import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main():
    """All rows within the time limit."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    until = time.perf_counter() + job["limit_s"]
    for shape, folder in job["models"].items():
        for length, texts in job["pairs"].items():
            show(f"predict: {shape}, {length}", until, predict, job, folder, texts, length)
        for objective, lists in job["lists"].items():
            show(f"trainer: {shape}, {objective}", until, trainer, job, folder, lists, objective)


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


def clock(job):
    """Seconds, as `gpu_rates.clock` has them: of CPU time on a CPU."""
    if job["device"] == "cpu":
        return time.process_time()
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
            model_kwargs={"attn_implementation": attention, "dtype": DTYPES[job["precision"]]},
        )
        for size in (64, 256) if on_gpu else (8,):
            few = min(len(texts), 256 if on_gpu else 4)
            settings = {"batch_size": size, "show_progress_bar": False}
            model.predict(texts[:few], **settings)
            started = clock(job)
            model.predict(texts[:few], **settings)
            count = int(few / (clock(job) - started) * job["seconds"])
            count = min(len(texts), max(few, count))
            started = clock(job)
            model.predict(texts[:count], **settings)
            rate = count / (clock(job) - started)
            if rate > best["pairs_per_s"]:
                best = {"pairs_per_s": round(rate, 2), "batch": size, "attention": attention}
    return best


def trainer(job, folder, lists, objective):
    """The better attention's figures of `train`."""
    tried = (train(job, folder, lists, objective, attention) for attention in attentions(folder))
    return max(tried, key=lambda figures: figures["pairs_per_s"])


def train(job, folder, lists, objective, attention):
    """Pairs per second of CrossEncoderTrainer's steps, tokenising included, dropout on.

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
            marks.append(clock(job))
            if len(marks) > 1 and marks[-1] - marks[0] > job["seconds"]:
                control.should_training_stop = True
            return control

    model = CrossEncoder(
        folder,
        device=job["device"],
        max_length=288,
        model_kwargs={"attn_implementation": attention},
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
            bf16=job["precision"] == "bf16",
            use_cpu=job["device"] == "cpu",
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        if job["device"] == "cuda":
            torch.cuda.reset_peak_memory_stats()
        CrossEncoderTrainer(
            model=model, args=arguments, train_dataset=rows, loss=loss, callbacks=[Clock()]
        ).train()
    steps = len(marks) - 1
    figures = {"pairs_per_s": round(steps * batch * size / (marks[-1] - marks[0]), 2)}
    if job["device"] == "cuda":
        figures["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return figures | {"steps": steps, "attention": attention}


if __name__ == "__main__":
    main()
