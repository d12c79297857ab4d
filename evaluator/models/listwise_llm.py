"""Listwise LLMs: chat models, here or behind an API, that are asked to rank a list of passages.

They order the passages of a window, which moves over the list from its end.
"""

import hashlib
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import zip_longest
from pathlib import Path
from string import ascii_uppercase
from threading import Lock
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from xsweep.errors import ConfigError, SetupError, first_line
from xsweep.evaluator.device import is_out_of_memory
from xsweep.evaluator.models.causal_reranker import keep_answers
from xsweep.evaluator.models.cross_encoder import load_model
from xsweep.evaluator.models.tokenizer import locate, tokenize
from xsweep.evaluator.prompts import Messages, messages_of
from xsweep.evaluator.specs import ListwiseSpec, ModelSpec

Ask = Callable[[Sequence[Messages], int], list[str]]
"""Gives a chat model's answers to questions, of at most so many tokens each."""

ANSWERS = "answers.jsonl"
"""File of a job's answers so far."""
BACKOFF_S = 1.0
"""First pause after a server's failure; each of the next five is twice as long."""
IDENTIFIER_TOKENS = 6
"""Tokens of an answer for each passage, ` > [10]` among them."""


def parse_ranking(answer: str, count: int, faults: Counter[str]) -> list[int]:
    """Places of the passages, from 0, in the order of an answer, whose faults are counted.

    Only numbers count; a repeated or unknown one is left out, and missing ones follow in the order
    in which they were asked about: `[3] > [1] > [3] > [9]` of 3 is 2, 0, 1. Thoughts do not count.
    """
    spoken = answer.rpartition("</think>")[2]
    named = [int(number) - 1 for number in re.findall("[0-9]+", spoken)]
    order = [place for place in dict.fromkeys(named) if 0 <= place < count]
    missing = [place for place in range(count) if place not in order]
    faults["repeated"] += len(named) - len(dict.fromkeys(named))
    faults["out_of_range"] += len(dict.fromkeys(named)) - len(order)
    faults["missing"] += len(missing)
    return order + missing


def rank_lists(
    model: ModelSpec,
    settings: ListwiseSpec,
    lists: Sequence[tuple[str, Sequence[str]]],
    ask: Ask,
    folders: Sequence[Path] = (),
    report: Callable[..., object] | None = None,
) -> tuple[list[list[int]], dict[str, int]]:
    """The order of each query's passages, as places in its list, and counts of answers and faults.

    Answers are kept in the first of `folders`; a resumed job asks for none of them again.
    """
    faults: Counter[str] = Counter(answers=0, resumed=0, repeated=0, out_of_range=0, missing=0)
    kept, lock = _read_answers(folders), Lock()
    most_tokens = settings.answer_tokens or IDENTIFIER_TOKENS * settings.window

    def answer(questions: Sequence[Messages]) -> list[str]:
        texts = [json.dumps([model.model_dump(mode="json"), each]) for each in questions]
        keys = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        new = {key: each for key, each in zip(keys, questions, strict=True) if key not in kept}
        found = dict(zip(new, ask(list(new.values()), most_tokens) if new else (), strict=True))
        with lock:
            faults["answers"] += len(keys)
            faults["resumed"] += sum(key in kept for key in keys)
            if folders and found:
                folders[0].mkdir(parents=True, exist_ok=True)
                with (folders[0] / ANSWERS).open("a") as file:
                    file.writelines(json.dumps(each) + "\n" for each in found.items())
        return [found[key] if key in found else kept[key] for key in keys]

    clean = partial(_without_identifiers, settings.prompt)

    def rank(group: Sequence[tuple[str, Sequence[str]]]) -> list[list[int]]:
        queries = [clean(query) for query, _ in group]
        passages = [
            [clean(" ".join(text.split()[: settings.passage_words])) for text in texts]
            for _, texts in group
        ]
        orders = [_first_order(settings, *each) for each in zip(queries, passages, strict=True)]
        turns = zip_longest(*(settings.windows(len(each)) * settings.passes for each in orders))
        for turn in turns:
            asked = [(row, slice(*window)) for row, window in enumerate(turn) if window]
            questions = [
                messages_of(
                    settings.prompt,
                    queries[row],
                    [passages[row][place] for place in orders[row][part]],
                )
                for row, part in asked
            ]
            for (row, part), found in zip(asked, answer(questions), strict=True):
                window = orders[row][part]
                with lock:
                    ranked = parse_ranking(found, len(window), faults)
                orders[row][part] = [window[place] for place in ranked]
        return orders

    # A server makes its own batches; here, the lists of a group share each pass of the model.
    threads, size = (settings.concurrency, 1) if settings.server else (1, settings.concurrency)
    pool, orders = ThreadPoolExecutor(threads), list[list[int]]()
    try:
        for ranked in pool.map(rank, [lists[at : at + size] for at in range(0, len(lists), size)]):
            orders += ranked
            if report:
                report(len(orders), len(lists))
    finally:
        pool.shutdown(cancel_futures=True)
    return orders, dict(faults)


def _read_answers(folders: Sequence[Path]) -> dict[str, str]:
    """Answers that earlier attempts left, by the checksum of their questions."""
    found: dict[str, str] = {}
    for path in (folder / ANSWERS for folder in folders):
        for line in path.read_text().splitlines() if path.is_file() else ():
            with suppress(ValueError):  # the last line of a killed attempt
                key, answer = json.loads(line)
                found[key] = answer
    return found


def _first_order(settings: ListwiseSpec, query: str, texts: Sequence[str]) -> list[int]:
    """The places of a list before the first pass."""
    order = list(range(len(texts)))
    if settings.order == "reversed":
        order.reverse()
    elif settings.order == "random":
        random.Random(query).shuffle(order)  # noqa: S311 - no secret
    return order


def _without_identifiers(prompt: str, text: str) -> str:
    """The text with `[3]`, or FIRST's `[C]`, which would name a passage, as `(3)`."""
    identifier = "[A-Z]" if prompt == "first" else r"\d+"
    return re.sub(rf"\[({identifier})\]", r"(\1)", text.strip())


def ask_server(model: str, settings: ListwiseSpec) -> Ask:
    """Asks a model behind an OpenAI-compatible API; urllib3 repeats what fails for the moment."""
    import requests
    from urllib3 import Retry

    failed = (429, 500, 502, 503)
    retry = Retry(6, backoff_factor=BACKOFF_S, status_forcelist=failed, allowed_methods=None)
    adapter = requests.adapters.HTTPAdapter(pool_maxsize=settings.concurrency, max_retries=retry)
    session, url = requests.Session(), f"{(settings.server or '').rstrip('/')}/chat/completions"
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    if key := os.environ.get("OPENAI_API_KEY"):
        session.headers["Authorization"] = f"Bearer {key}"

    def ask_one(messages: Messages, most_tokens: int) -> str:
        body: Any = {"model": model, "messages": messages, "temperature": 0}
        body["max_tokens"] = most_tokens
        try:
            response = session.post(url, json=body, timeout=600)
            response.raise_for_status()
            return response.json()["choices"][0]["message"]["content"] or ""
        except (OSError, ValueError, LookupError, TypeError) as error:  # requests' are OSErrors
            status = getattr(getattr(error, "response", None), "status_code", 500)
            refused = ConfigError if 400 <= status < 500 else SetupError
            raise refused(f"{url} gives no answer: {first_line(error)}") from error

    return lambda questions, most_tokens: [ask_one(each, most_tokens) for each in questions]


def ask_model(spec: ModelSpec, prompt: str, dtype: torch.dtype, device: torch.device) -> Ask:
    """Asks a chat model on this machine, greedily, several questions at once.

    FIRST (Reddy et al. 2024, arXiv 2406.15657) writes no answer: the logits of the letters in its
    first place rank the passages. A batch that memory does not hold is halved.
    """
    model, tokenizer, _ = load_model(AutoModelForCausalLM, spec, dtype=dtype)
    if not tokenizer.chat_template:
        raise ConfigError(
            f"{locate(spec)}: its tokenizer has no chat template, it is no chat model"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    opening = ""
    if prompt == "first":
        opening = "["
        start, *named = tokenize(tokenizer, [opening, *(f"[{each}" for each in ascii_uppercase)], 9)
        if not all(np.array_equal(ids[:-1], start) for ids in named):
            raise ConfigError(f"{locate(spec)}: letters behind a bracket are not one token each")
        keep_answers(model, [int(ids[-1]) for ids in named])
    model.to(device)
    generate: Any = model.generate

    @torch.inference_mode()
    def ask(questions: Sequence[Messages], most_tokens: int) -> list[str]:
        if prompt == "first":
            most_tokens = 1
        texts: Any = tokenizer.apply_chat_template(
            list(questions), add_generation_prompt=True, tokenize=False
        )
        asked = tokenizer(
            [f"{text}{opening}" for text in texts],
            add_special_tokens=False,
            padding=True,
            return_token_type_ids=False,
            return_tensors="pt",
        ).to(device)
        read = asked["input_ids"].shape[1]
        if read + most_tokens > tokenizer.model_max_length:
            raise ConfigError(
                f"a question has {read} tokens and the model {tokenizer.model_max_length}: lower "
                "window or passage_words"
            )
        try:
            answer = generate(
                **asked,
                max_new_tokens=most_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                output_logits=prompt == "first",
                return_dict_in_generate=True,
            )
        except RuntimeError as error:
            half = len(questions) // 2
            if not half or not is_out_of_memory(error):
                raise
            return ask(questions[:half], most_tokens) + ask(questions[half:], most_tokens)
        if prompt != "first":
            return tokenizer.batch_decode(answer.sequences[:, read:], skip_special_tokens=True)
        orders = []
        for question, logits in zip(questions, answer.logits[0], strict=True):
            count = len(re.findall(r"^\[[A-Z]\] ", question[-1]["content"], re.M))
            orders.append(logits[:count].sort(descending=True, stable=True).indices + 1)
        return [" > ".join(f"[{place}]" for place in order.tolist()) for order in orders]

    return ask
