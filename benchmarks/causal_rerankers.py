"""Prompts per second of a causal reranker, beside plain transformers.

    python benchmarks/causal_rerankers.py [--layers 6] [--width 512] [--vocabulary 32000]
        [--pairs 48] [--repeats 3] [--threads 1]

A random Qwen3 scores passages of the built-in collection with Qwen3-Reranker's prompt: one prompt
at a time; 8 in a padded batch in the given order, as its model card does (logits of the whole
vocabulary at every position); and by `scoring`, with and without the states that prompts share.
Ways take turns; each line is the least CPU time of a way, and the ratio is to one at a time.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config
from transformers.utils import logging

from xsweep.evaluator.data import load_collection
from xsweep.evaluator.models.causal_reranker import PromptEncoder, load_causal_reranker
from xsweep.evaluator.scoring import score_pairs
from xsweep.evaluator.specs import ApidocsSpec, ModelSpec, PromptSpec, ScoringSpec

PROMPT = PromptSpec.model_validate("qwen3-reranker")


def write_model(folder: Path, options: argparse.Namespace, texts: list[str]) -> None:
    """A random Qwen3 with a byte-level tokenizer of these texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<|im_start|>", "<|im_end|>", *PROMPT.answers]
    trainer = trainers.BpeTrainer(vocab_size=8000, special_tokens=special, show_progress=False)
    backend.train_from_iterator([*texts, *PROMPT.template * 50], trainer)
    names = {"pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        intermediate_size=3 * options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.width // 64,
        num_key_value_heads=options.width // 128,
        head_dim=64,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def main() -> None:
    """Prints a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    collection = load_collection(ApidocsSpec(name="apidocs/test", split="test"))
    documents = [text[:500] for _, text in islice(collection.documents(), options.pairs)]
    pairs = list(zip(islice(collection.queries.values(), options.pairs), documents, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), options, documents)
        model, tokenizer = load_causal_reranker(ModelSpec(folder=folder), PROMPT, torch.float32)
        plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    counts = {text: len(tokenizer(text)["input_ids"]) for pair in pairs for text in pair}
    encoder = PromptEncoder(tokenizer, PROMPT, model, counts)
    whole = PromptEncoder(tokenizer, PROMPT, model, counts)
    whole.shared, whole.overhead_tokens = encoder.shared[:0], encoder.overhead_tokens
    whole.overhead_tokens += len(encoder.shared)
    answers = tokenizer.convert_tokens_to_ids(list(PROMPT.answers))

    def ours(encoder: PromptEncoder) -> np.ndarray:
        return score_pairs(model, encoder, pairs, ScoringSpec()).scores

    @torch.inference_mode()
    def batches(size: int) -> np.ndarray:
        scores = []
        for start in range(0, len(pairs), size):
            ids = [pair.input_ids for pair in whole.encode_all(pairs[start : start + size], 0, 0)]
            rows = [{"input_ids": row.tolist()} for row in ids]
            batch = tokenizer.pad(rows, padding_side="left", return_tensors="pt")
            logits = plain(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, -1]
            scores.append((logits[:, answers[0]] - logits[:, answers[1]]).numpy())
        return np.concatenate(scores)

    ways: dict[str, Callable[[], np.ndarray]] = {
        "one at a time": lambda: batches(1),
        "batches of 8": lambda: batches(8),
        "ours, nothing shared": lambda: ours(whole),
        "ours": lambda: ours(encoder),
    }
    best: dict[str, float] = {}
    for _ in range(options.repeats):
        for name, way in ways.items():
            started_s = time.process_time()
            scores = way()
            best[name] = min(best.get(name, np.inf), time.process_time() - started_s)
            np.testing.assert_allclose(scores, ways["batches of 8"](), atol=1e-3)
    tokens = whole.lengths_of(pairs, 0, 0).mean()
    print(f"{tokens:.0f} tokens a prompt, {len(encoder.shared)} of them shared by all")
    for name, spent_s in best.items():
        rate = len(pairs) / spent_s
        print(f"{name:24}{rate:8.2f} pairs/CPU s{best['one at a time'] / spent_s:7.2f}")


if __name__ == "__main__":
    main()
