"""Times lightning-ir's re-ranking for `scoring.py`, in an environment of its own.

Reads {"model", "texts", "depth", "repeats", "threads"} as JSON on stdin; prints the best repeat as
[wall seconds, CPU seconds]. One call scores one query's candidates, as its re-ranking loop does.
"""

import json
import sys
import time

import torch
from lightning_ir import CrossEncoderModule
from lightning_ir.models import MonoConfig


def main() -> None:
    """One JSON document in, one line out."""
    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    config = MonoConfig(query_length=32, doc_length=256)
    module = CrossEncoderModule(model_name_or_path=job["model"], config=config).eval()
    depth = job["depth"]
    lists = [job["texts"][start : start + depth] for start in range(0, len(job["texts"]), depth)]
    timings = []
    for _ in range(job["repeats"]):
        wall, cpu = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            for pairs in lists:
                module.score([pairs[0][0]], [[document for _, document in pairs]])
        timings.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpu_s, wall_s = min(timings)
    print(json.dumps([wall_s, cpu_s]))


if __name__ == "__main__":
    main()
