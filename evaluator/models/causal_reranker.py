"""Causal rerankers: language models that are asked about one document.

The score is the logit of one answer, less that of the other, at the end of a prompt; those of
published models are in `xsweep.evaluator.prompts`.
"""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
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

from xsweep.errors import ConfigError, DataError
from xsweep.evaluator.models.cross_encoder import (
    HeadInFp32,
    load_cross_encoder,
    load_model,
    quiet_loading,
    same_scores,
)
from xsweep.evaluator.models.tokenizer import locate, special_tokens, tokenize
from xsweep.evaluator.pairs import NO_LIMIT, PROBES, PairEncoder, PairIds
from xsweep.evaluator.specs import ModelSpec, PromptSpec
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
    keep_answers(model, [token for (token,) in answers])
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


def keep_answers(model: PreTrainedModel, tokens: Sequence[int]) -> None:
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
