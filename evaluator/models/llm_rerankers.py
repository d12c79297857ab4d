"""Language models as rerankers: asked about one document, or to rank a list.

A causal reranker's score is the logit of one answer, less that of the other, at the end of a
prompt; published models' prompts are `specs.PROMPTS`. A listwise LLM is a chat model, here or
behind an API, that orders the passages of a window, which moves over the list from its end.
"""

import copy
import hashlib
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from inspect import signature
from itertools import zip_longest
from pathlib import Path
from string import ascii_uppercase
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch.nn.attention import sdpa_kernel
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.cache_utils import DynamicLayer

from xsweep.errors import ConfigError, DataError, SetupError, first_line
from xsweep.evaluator.device import is_out_of_memory
from xsweep.evaluator.models.cross_encoder import (
    HeadInFp32,
    load_cross_encoder,
    load_model,
    quiet_loading,
    same_scores,
)
from xsweep.evaluator.models.tokenizer import locate, special_tokens, tokenize
from xsweep.evaluator.pairs import NO_LIMIT, PROBES, PairEncoder, PairIds
from xsweep.evaluator.specs import ListwiseSpec, ModelSpec, PromptSpec
from xsweep.evaluator.varlen.attention import KERNELS

_BEGINNINGS = (("a", "b"), ("?", "!"), ("1", "2"))
"""Texts of which no two begin alike: their prompts share the template's beginning only."""


def load_causal_reranker(
    spec: ModelSpec, prompt: PromptSpec, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A decoder or encoder-decoder that gives the logits of the prompt's answers only.

    Its weights have `dtype`, those of the answers fp32. Raises ConfigError if an answer is not one
    token, or if the scores depend on the batch.
    """
    model, tokenizer, missing = load_model(AutoModelForCausalLM, spec, dtype=dtype)
    if missing:
        raise DataError(f"{locate(spec)}: no language model, it lacks {missing[0]}")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    answers = tokenizer(list(prompt.answers), add_special_tokens=False)["input_ids"]
    for answer, ids in zip(prompt.answers, answers, strict=True):
        if len(ids) != 1:
            raise ConfigError(
                f"{locate(spec)}: the answer {answer!r} is {len(ids)} tokens, it must be one"
            )
    _keep_answers(model, [token for (token,) in answers])
    with quiet_loading(), torch.no_grad():
        _probe(model, PromptEncoder(tokenizer, prompt, model))
    return model, tokenizer


def load_answering(spec: ModelSpec, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A cross-encoder to train, which scores as its language model answers the spec's prompt.

    The head is the output layer's row of the first answer, less that of the second. Raises
    ConfigError if logits are not products of these rows.
    """
    assert spec.prompt
    model, tokenizer = load_cross_encoder(spec, seed)
    plain = spec.model_copy(update={"prompt": None})
    causal, _ = load_causal_reranker(plain, spec.prompt, torch.float32)
    rows_AH = causal.get_output_embeddings().weight
    sign_A = torch.tensor([1.0, -1.0])[: len(rows_AH)]
    heads = [each for each in model.modules() if isinstance(each, HeadInFp32)]
    encoder = PairEncoder(tokenizer)
    refusal = ConfigError(
        f"{locate(spec)}: this {model.config.model_type} model's logits are not those of a linear "
        "head without a bias: train it without a prompt"
    )
    if causal.config.is_encoder_decoder:
        raise refusal
    with quiet_loading(), torch.no_grad():
        heads[-1].weight.copy_(sign_A @ rows_AH)
        for pair in encoder.probes:
            inputs = encoder.collate([pair])
            expected = causal(**inputs).logits[:, -1] @ sign_A
            if not same_scores(model(**inputs).logits[:, 0], expected):
                raise refusal
    return model, tokenizer


def _keep_answers(model: PreTrainedModel, tokens: Sequence[int]) -> None:
    """Cuts the output layer to some tokens, in fp32: bf16 would round many scores alike."""
    whole = model.get_output_embeddings()
    head = HeadInFp32(whole.weight.shape[1], len(tokens), bias=whole.bias is not None)
    head.load_state_dict({name: each[tokens].float() for name, each in whole.state_dict().items()})
    model.set_output_embeddings(head)


def _probe(model: PreTrainedModel, encoder: "PromptEncoder") -> None:
    """Raises ConfigError unless pairs of unequal length score the same alone and in one batch."""
    pairs = encoder.encode_all(PROBES, 0, 0)
    apart = copy.copy(encoder)
    apart.shared = encoder.shared[:0]
    score = build_prompt_scorer(model, apart)
    alone = torch.cat([score(apart.collate([pair])) for pair in pairs])
    together = build_prompt_scorer(model, encoder)(encoder.collate(pairs))
    is_same = (
        same_scores(together, alone)
        if model.dtype == torch.float32
        else torch.allclose(together, alone, rtol=0.1, atol=0.1)
    )
    if not is_same:
        raise ConfigError(
            f"{model.name_or_path}: this {model.config.model_type} model scores a prompt "
            f"{alone.tolist()} alone and {together.tolist()} in a batch: name another model"
        )


class PromptEncoder:
    """Turns the texts of a query and a document into the token ids of a prompt."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        prompt: PromptSpec,
        model: PreTrainedModel,
        counts: Mapping[str, int] = {},
    ) -> None:
        """`counts` gives the number of tokens of each text, by which prompts are ordered."""
        self.tokenizer, self.counts = tokenizer, counts
        self.parts = [re.split(r"(\{query\}|\{document\})", part) for part in prompt.template]
        self.before, self.after = special_tokens(tokenizer)
        self.pad_id: int = tokenizer.pad_token_id or 0
        self.max_tokens = min(tokenizer.model_max_length, NO_LIMIT)
        self.shared = np.empty(0, dtype=np.int64)
        """The token ids with which every prompt begins, if the model can keep their states."""
        beginnings = [pair.input_ids for pair in self.encode_all(_BEGINNINGS, 0, 0)]
        if _keeps_states(model):
            least = min(map(len, beginnings)) - 1
            alike = np.all([ids[:least] == beginnings[0][:least] for ids in beginnings], axis=0)
            self.shared = beginnings[0][: np.append(alike, False).argmin()]
        self.overhead_tokens = len(beginnings[0]) - len(self.shared)

    def lengths_of(
        self, pairs: Sequence[tuple[str, str]], query_tokens: int, document_tokens: int
    ) -> np.ndarray:
        """Tokens of each prompt after the shared ones, int64, give or take where texts meet."""
        texts = (self.counts[query] + self.counts[document] for query, document in pairs)
        return self.overhead_tokens + np.fromiter(texts, np.int64, len(pairs))

    def encode_all(
        self, pairs: Sequence[tuple[str, str]], query_tokens: int, document_tokens: int
    ) -> list[PairIds]:
        """The prompts of pairs of texts, which are cut already."""
        columns = []
        for part in self.parts:
            texts = [
                "".join({"{query}": query, "{document}": document}.get(word, word) for word in part)
                for query, document in (pairs if len(part) > 1 else pairs[:1])
            ]
            ids = tokenize(self.tokenizer, texts, NO_LIMIT)
            columns.append(ids if len(part) > 1 else ids * len(pairs))
        prompts = [
            np.concatenate((self.before, *row, self.after), dtype=np.int64)
            for row in zip(*columns, strict=True)
        ]
        if (longest := max(map(len, prompts))) > self.max_tokens:
            raise ConfigError(
                f"a prompt has {longest} tokens, the model takes {self.max_tokens}: lower "
                "document_tokens or query_tokens"
            )
        return [PairIds(ids, None) for ids in prompts]

    def collate(self, pairs: Sequence[PairIds]) -> dict[str, torch.Tensor]:
        """Model inputs of prompts without the shared tokens, padded at the beginning.

        The mask, int64[pairs, shared + longest], begins with the shared tokens. If a text has
        changed their last one, this batch shares nothing.
        """
        prompts = [pair.input_ids for pair in pairs]
        shared = len(self.shared)
        if not all(np.array_equal(ids[:shared], self.shared) for ids in prompts):
            shared = 0
        longest = max(map(len, prompts)) - shared
        input_ids = np.full((len(prompts), longest), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(prompts), shared + longest), dtype=np.int64)
        mask[:, :shared] = 1
        for row, ids in enumerate(prompts):
            input_ids[row, shared + longest - len(ids) :] = ids[shared:]
            mask[row, shared + longest - len(ids) + shared :] = 1
        positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, shared:]
        inputs = {"input_ids": input_ids, "attention_mask": mask, "position_ids": positions}
        return {name: torch.from_numpy(array) for name, array in inputs.items()}


def _keeps_states(model: PreTrainedModel) -> bool:
    """True if attention's keys and values are a decoder's only states, and all of them are kept.

    A sliding window counts padding between the shared tokens and the others.
    """
    if model.config.is_encoder_decoder:
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def build_prompt_scorer(
    model: PreTrainedModel, encoder: PromptEncoder
) -> Callable[[Mapping[str, torch.Tensor]], torch.Tensor]:
    """A function from collated prompts to scores, fp32[pairs].

    The states of the prompts' shared beginning are computed here, once.
    """
    states = None
    if len(encoder.shared):
        ids = torch.from_numpy(encoder.shared).to(model.device)[None]
        states = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    taken = signature(model.forward).parameters

    def score(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        count, longest = inputs["input_ids"].shape
        given: dict[str, Any] = {name: each for name, each in inputs.items() if name in taken}
        if model.config.is_encoder_decoder:
            shape, start = (count, 1), model.config.decoder_start_token_id
            given["decoder_input_ids"] = inputs["input_ids"].new_full(shape, start)
        else:
            given["logits_to_keep"] = 1
        if inputs["attention_mask"].shape[1] > longest:
            given["past_key_values"] = copy.deepcopy(states)
            given["past_key_values"].batch_repeat_interleave(count)
        with sdpa_kernel(KERNELS):
            logits_BA = model(**given, use_cache="past_key_values" in given).logits[:, -1]
        return logits_BA[:, 0] - logits_BA[:, 1] if logits_BA.shape[1] > 1 else logits_BA[:, 0]

    return score


Messages = list[dict[str, str]]
Ask = Callable[[Sequence[Messages], int], list[str]]
"""Gives a chat model's answers to questions, of at most so many tokens each."""

ANSWERS = "answers.jsonl"
"""File of a job's answers so far."""
BACKOFF_S = 1.0
"""First pause after a server's failure; each of the next five is twice as long."""
IDENTIFIER_TOKENS = 6
"""Tokens of an answer for each passage, ` > [10]` among them."""


def messages_of(prompt: str, query: str, passages: Sequence[str]) -> Messages:
    """The question about one window's passages, in the words of RankZephyr or RankGPT.

    FIRST's are RankZephyr's, with letters for numbers.
    """
    count = len(passages)
    if prompt != "rankgpt":
        kind, names = "a numerical", [str(place) for place in range(1, count + 1)]
        if prompt == "first":
            kind, names = "an alphabetical", list(ascii_uppercase[:count])
        listed = "\n".join(f"[{name}] {text}" for name, text in zip(names, passages, strict=True))
        user = (
            f"I will provide you with {count} passages, each indicated by {kind} identifier "
            f"[]. Rank the passages based on their relevance to the search query: {query}.\n"
            f"{listed}\nSearch Query: {query}.\nRank the {count} passages above based on their "
            "relevance to the search query. All the passages should be included and listed using "
            "identifiers, in descending order of relevance. The output format should be [] > [], "
            f"e.g., [{names[1]}] > [{names[0]}], Answer concisely and directly and only respond "
            "with the ranking results, do not say any word or explain."
        )
        system = (
            "You are RankLLM, an intelligent assistant that can rank passages based on their "
            "relevancy to the query"
        )
        return [{"role": "system", "content": system}, {"role": "user", "content": user}]
    turns = [
        "You are RankGPT, an intelligent assistant that can rank passages based on their relevancy "
        "to the query.",
        f"I will provide you with {count} passages, each indicated by number identifier [].\nRank "
        f"the passages based on their relevance to query: {query}.",
        "Okay, please provide the passages.",
    ]
    for place, text in enumerate(passages, 1):
        turns += [f"[{place}] {text}", f"Received passage [{place}]."]
    turns.append(
        f"Search Query: {query}.\nRank the {count} passages above based on their relevance to the "
        "search query. The passages should be listed in descending order using identifiers. The "
        "most relevant passages should be listed first. The output format should be [] > [], e.g., "
        "[1] > [2]. Only response the ranking results, do not say any word or explain."
    )
    roles = ["system", *["user", "assistant"] * (count + 1), "user"]
    return [{"role": role, "content": text} for role, text in zip(roles, turns, strict=True)]


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
        _keep_answers(model, [int(ids[-1]) for ids in named])
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
