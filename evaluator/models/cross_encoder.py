"""Cross-encoders: a backbone with one logit, loaded as fp32 with an explicit attention."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from xsweep.errors import ConfigError, DataError, first_line
from xsweep.evaluator.models.tokenizer import cannot_load, load_tokenizer, locate
from xsweep.evaluator.pairs import PairEncoder, PairIds
from xsweep.evaluator.specs import ModelSpec
from xsweep.evaluator.varlen.attention import pack
from xsweep.evaluator.varlen.encoders import build_scorer, has_unpadded
from xsweep.evaluator.varlen.layers import Kernels


def load_cross_encoder(
    model: ModelSpec | Path | str, seed: int | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A model with one output and its tokenizer; fp32 weights, dropout off (`eval`).

    With a seed, weights that the files lack (a new head) are drawn under it and nothing else
    changes the caller's random state; without one, a missing weight is a DataError. The
    tokenizer's `model_max_length` becomes the longest input that the model has positions for, and
    the model's padding token becomes the tokenizer's. Raises ConfigError for a model whose scores
    depend on the batch, or that cannot score pairs of texts.
    """
    spec = model if isinstance(model, ModelSpec) else ModelSpec(folder=str(model))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        loaded, tokenizer, missing = load_model(
            AutoModelForSequenceClassification,
            spec,
            num_labels=1,
            ignore_mismatched_sizes=True,
        )
        if seed is None and missing:
            lacks = f"it lacks {missing[0]}"
            if not isinstance(missing[0], str):  # name, shape in the files, shape in the model
                name, found, wanted = missing[0]
                lacks = f"its {name} is {list(found)}, one output has {list(wanted)}"
            raise DataError(
                f"{locate(spec)}: no trained cross-encoder with one output, {lacks}: "
                "name a model with a head of one output, or train one"
            )
        _keep_head_in_fp32(loaded)
        with quiet_loading(), torch.no_grad():
            _probe(loaded, tokenizer, is_trained=seed is None)
    return loaded, tokenizer


def _probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, is_trained: bool) -> None:
    """Sets one padding token for both, and raises ConfigError unless every pass agrees.

    Two pairs of unequal length must score the same alone and in one batch, padded and packed.
    """
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Some decoders' own is left, which would shift GPT-2's positions where others load the export.
    tokenizer.padding_side = "right"
    taken = signature(model.forward).parameters
    tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name in taken]
    encoder, this = PairEncoder(tokenizer), f"{model.name_or_path}: this {model.config.model_type}"

    def score(pairs: Sequence[PairIds]) -> torch.Tensor:
        return model(**encoder.collate(pairs)).logits[:, 0]

    try:
        # A decoder's score is that of the last token that is no padding: a trained head keeps the
        # token that it was trained on, a new one gets the tokenizer's.
        if not is_trained:
            _set_padding(model, encoder.pad_id)
        alone = torch.cat([score([pair]) for pair in encoder.probes])
        _set_padding(model, encoder.pad_id)
        passes = [score(encoder.probes)]
        if has_unpadded(model):
            passes.append(build_scorer(model, Kernels(torch.float32))(pack(encoder.probes)))
    except Exception as error:  # a family says in its own ways that it needs other inputs
        raise ConfigError(
            f"{this} model cannot score pairs of texts "
            f"({first_line(error).rstrip('.')}): name another backbone"
        ) from error
    if not is_trained and torch.equal(*alone):
        raise ConfigError(
            f"{this} model gives different pairs the same score here, "
            f"{alone[0]:.4g}: name another backbone"
        )
    for together in passes:
        # A Perceiver's differ by a thousandth or less, depending on its weights.
        if not same_scores(together, alone, rtol=1e-4):
            worst = (together - alone).abs().argmax()
            raise ConfigError(
                f"{this} model gives a pair {alone[worst]:.4g} alone and "
                f"{together[worst]:.4g} beside a longer or shorter one, so its scores depend on "
                "the batch: name another backbone"
            )


def same_scores(logits: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-3) -> bool:
    """True if logits differ by rounding only, as those of other passes in fp32 do."""
    return torch.allclose(logits, expected, rtol=rtol, atol=1e-4, equal_nan=True)


def _set_padding(model: PreTrainedModel, pad_id: int) -> None:
    """Sets the padding token by which a decoder finds the last token of an input."""
    model.config.pad_token_id = pad_id
    model.config.get_text_config().pad_token_id = pad_id


Loaded = tuple[PreTrainedModel, PreTrainedTokenizerFast]
_cached: dict[str, Loaded] = {}


def load_cached(
    spec: ModelSpec, load: Callable[..., Loaded] = load_cross_encoder, *settings: object
) -> Loaded:
    """`load(spec, *settings)`, from memory if it was the last one and its files are the same.

    Consecutive evaluations usually share their model, and scoring does not change it. Only one is
    cached: a GPU holds one model beside its batches.
    """
    key = f"{load.__name__} {spec!r} {settings} {_file_state(Path(locate(spec)))}"
    if key not in _cached:
        _cached.clear()  # before loading: there may not be room for both
        _cached[key] = load(spec, *settings)
    return _cached[key]


def _file_state(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of each file; empty for a model that is not a folder."""
    files = sorted(folder.glob("*")) if folder.is_dir() else []
    stats = [(path.name, path.stat()) for path in files]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


class HeadInFp32(torch.nn.Linear):
    """The last layer, which gives the logit, computed in fp32 also under autocast.

    bf16 has 8 significant bits: in a list of 1,000 documents rounding would make many logits equal.
    """

    def forward(self, hidden_PH: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden_PH.device.type, enabled=False):
            return super().forward(hidden_PH.float())


def _keep_head_in_fp32(model: PreTrainedModel) -> None:
    """Makes the last layer a `HeadInFp32`, by its class, so that a copy computes with its own."""
    head = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 1]
    head[-1].__class__ = HeadInFp32


def load_model(
    kind: Any, spec: ModelSpec, dtype: torch.dtype = torch.float32, **settings: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, list[str]]:
    """A model of a transformers auto class, its tokenizer, and the weights that its files lack.

    Dropout is off (`eval`). The tokenizer's `model_max_length` becomes the longest input that the
    model has positions for. Raises DataError if it cannot be loaded.
    """
    tokenizer = load_tokenizer(spec)
    where, revision = locate(spec), spec.revision or "main"
    labels = {"num_labels": settings.pop("num_labels")} if "num_labels" in settings else {}
    with quiet_loading(), _data_error(where):
        config = AutoConfig.from_pretrained(
            where, revision=revision, trust_remote_code=False, **labels
        )
        if spec.layers is not None:
            _cut_layers(config, spec.layers)
        if "lsh" in (getattr(config, "attn_layers", None) or ()):
            raise ConfigError(
                f"{where}: {config.model_type} models hash long inputs at random, so no score "
                "comes out twice: name another backbone"
            )
        if hasattr(config, "attention_type"):  # BigBird's sparse one depends on the batch's length
            config.attention_type = "original_full"
        if kind is AutoModelForCausalLM and config.is_encoder_decoder:
            kind = AutoModelForSeq2SeqLM
        model, info = kind.from_pretrained(
            where,
            revision=revision,
            trust_remote_code=False,
            config=config,
            dtype=dtype,
            attn_implementation=_attention(kind, config, spec.attention),
            output_loading_info=True,
            **settings,
        )
    tokenizer.model_max_length = min(tokenizer.model_max_length, _max_positions(model))
    missing = sorted([*info["missing_keys"], *info["mismatched_keys"]], key=str)
    return model.eval(), tokenizer, missing


def _cut_layers(config: Any, layers: int) -> None:
    """Cuts a configuration to its first encoder layers."""
    if layers > config.num_hidden_layers:
        raise ConfigError(f"layers is {layers}, the model has {config.num_hidden_layers}")
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]


def _max_positions(model: PreTrainedModel) -> int:
    """The longest input, in tokens, that a model has positions for."""
    positions = getattr(model.config, "max_position_embeddings", None) or 2**31
    embeddings = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    # RoBERTa numbers positions from padding_idx + 1, so that many rows are not positions.
    offset = getattr(embeddings, "padding_idx", None)
    return positions - (offset + 1 if offset is not None else 0)


def _attention(kind: Any, config: Any, wanted: str) -> str:
    """`wanted`, or eager for families (DeBERTa-v2) that have no scaled-dot-product attention."""
    if type(config) not in kind._model_mapping:
        raise ConfigError(
            f"{config.model_type} models have no {kind.__name__}: name another backbone"
        )
    supported = kind._model_mapping[type(config)]._supports_sdpa
    return wanted if supported else "eager"


@contextmanager
def _data_error(where: str) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except (ImportError, OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise cannot_load(f"model {where!r} cannot be loaded", error) from error


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silences transformers' progress bars and its report of new or dropped weights."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
