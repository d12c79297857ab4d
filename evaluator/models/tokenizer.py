"""Tokenizers: located, repaired if the published settings are wrong, run in one batch."""

import copy
import hashlib
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

import numpy as np
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast

from xsweep.errors import ConfigError, DataError, XsweepError
from xsweep.evaluator.data.files import tree_sha256
from xsweep.evaluator.specs import ModelSpec, PromptSpec


def locate(spec: ModelSpec) -> str:
    """The local folder, or the Hugging Face id, of a model's files.

    Raises DataError if the folder or package is missing or differs from the declared version.
    """
    if spec.folder is not None:
        folder = Path(spec.folder)
        if not (folder / "config.json").is_file() and not (folder / "tokenizer.json").is_file():
            raise DataError(f"{folder}: no model here (neither config.json nor tokenizer.json)")
        if spec.sha256 and (found := tree_sha256(folder)) != spec.sha256:
            raise DataError(f"{folder}: sha256 is {found}, declared is {spec.sha256}")
        return str(folder)
    if spec.package is not None:
        return str(_package_folder(spec.package, spec.version))
    assert spec.id is not None
    return spec.id


def _package_folder(package: str, version: str | None) -> Path:
    module = importlib.util.find_spec(package.replace("-", "_"))
    if module is None or module.origin is None:
        raise DataError(f"package {package!r} is not installed: pip install {package}")
    if version and (found := importlib.metadata.version(package)) != version:
        raise DataError(f"package {package!r} is version {found}, declared is {version}")
    root = Path(module.origin).parent
    configs = sorted(root.rglob("config.json"), key=lambda path: len(path.parts))
    if not configs:
        raise DataError(f"package {package!r} holds no model: there is no config.json in {root}")
    return configs[0].parent


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a model. Raises DataError if it cannot be loaded."""
    where = locate(spec)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            where, revision=spec.revision or "main", trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise cannot_load(f"no tokenizer for {where!r}", error) from error
    if not tokenizer.is_fast:
        raise ConfigError(f"the tokenizer of {where!r} has no fast (Rust) version")
    with suppress(OSError):  # a tokenizer without a model has no configuration
        config, _ = PreTrainedConfig.get_config_dict(where, revision=spec.revision or "main")
        # encoder-decoders find the end of their input by `</s>`, which a text may contain
        tokenizer.split_special_tokens = config.get("is_encoder_decoder", False)
    found = repair_case(cast(PreTrainedTokenizerFast, tokenizer))
    return _with_prompt(found, spec.prompt) if spec.prompt else found


def _with_prompt(tokenizer: PreTrainedTokenizerFast, prompt: PromptSpec) -> PreTrainedTokenizerFast:
    """The tokenizer with a prompt as its template of pairs, which every program then follows.

    A space before a text becomes part of its first word, as in the prompt read as a whole.
    """
    from tokenizers import normalizers, processors

    parts = (re.split(r"(\{query\}|\{document\})", part) for part in prompt.template)
    pieces = [piece for part in parts for piece in part if piece]
    query, document = pieces.index("{query}"), pieces.index("{document}")
    if query > document:
        raise ConfigError("a backbone's prompt has {query} before {document}, this one behind it")
    sides = pieces[:query], pieces[query + 1 : document], pieces[document + 1 :]
    backend, around = copy.deepcopy(tokenizer.backend_tokenizer), special_tokens(tokenizer)
    prepend = all(side and side[-1].endswith(" ") for side in sides[:2])
    if prepend:
        for side in sides[:2]:
            side[-1] = side[-1].removesuffix(" ")
        whole, *halves = tokenize(tokenizer, ["a: b", "a:", "b"], 9)
        prepend = not np.array_equal(whole, np.concatenate(halves))  # else it does so by itself
    ids: list[list[int]] = [
        [token for text in side if text for token in tokenize(tokenizer, [text], 2**31)[0].tolist()]
        for side in sides
    ]
    ids[0][:0], ids[2][len(ids[2]) :] = around[0].tolist(), around[1].tolist()
    if prepend:
        steps = [normalizers.Prepend(" "), *filter(None, [backend.normalizer])]
        backend.normalizer = normalizers.Sequence(steps)
    names = [f"prompt {place}" for place in range(3)]
    backend.post_processor = processors.TemplateProcessing(
        single=["$A"],
        pair=[names[0], "$A", names[1], "$B", names[2]],
        special_tokens=[
            {"id": name, "ids": each, "tokens": tokenizer.convert_ids_to_tokens(each)}
            for name, each in zip(names, ids, strict=True)
        ],
    )
    # Its own class would build its own template again when it is loaded.
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        **tokenizer.special_tokens_map,
    )


def cannot_load(message: str, error: Exception) -> XsweepError:
    """The error for files that transformers cannot load; without its advice to trust their code."""
    if "trust_remote_code" in str(error):
        return ConfigError(
            f"{message}: it needs code of its own, and only code of installed packages is run. "
            "Name a model of an architecture that transformers has"
        )
    return DataError(f"{message}: {error}. Offline, name a folder or a cached id")


def repair_case(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Turns lower-casing on if the vocabulary has no capitals but the settings keep them.

    The published settings of microsoft/MiniLM-L12-H384-uncased lack `do_lower_case`, which turns
    every capitalised word into [UNK].
    """
    from tokenizers.normalizers import BertNormalizer

    backend = tokenizer.backend_tokenizer
    normalizer = backend.normalizer
    if not isinstance(normalizer, BertNormalizer) or normalizer.lowercase:
        return tokenizer
    words = tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens)
    if any(word != word.lower() for word in words if not word.startswith("[unused")):
        return tokenizer
    normalizer.lowercase = True
    backend.normalizer = normalizer
    tokenizer.init_kwargs["do_lower_case"] = True
    return tokenizer


def fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """A checksum of the vocabulary and a probe text's ids: equal for tokenizers that cut alike."""
    probe = "Naïve CAFÉ re-ranking, 北京 2,026: don't_split\tthis  twice? 😀 ½"
    seen = [sorted(tokenizer.get_vocab().items()), tokenize(tokenizer, [probe], 512)[0].tolist()]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def special_tokens(tokenizer: PreTrainedTokenizerFast) -> tuple[np.ndarray, np.ndarray]:
    """The special tokens before and after a single text."""
    probe = tokenizer("a")
    sides, ids = probe.sequence_ids(), np.array(probe["input_ids"], dtype=np.int64)
    text = [place for place, side in enumerate(sides) if side is not None]
    return ids[: text[0]], ids[text[-1] + 1 :]


def tokenize(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], max_tokens: int
) -> list[np.ndarray]:
    """The first `max_tokens` token ids (int32) of each text, without special tokens."""
    if not texts:
        return []
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        truncation=True,
        max_length=max_tokens,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    return [np.asarray(ids, dtype=np.int32) for ids in encoded["input_ids"]]
