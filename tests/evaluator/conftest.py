"""Small real tokenizers and random models of the families that the study trains."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE, Unigram, WordPiece
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertTokenizer,
    DebertaV2Config,
    DebertaV2Tokenizer,
    ElectraConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaTokenizer,
)

FAMILIES = ("bert", "electra", "roberta", "deberta", "modernbert")

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "what is the capital of france, and who was its first king?",
    "re-ranking candidates with a cross-encoder is slow but precise",
    "numpy arrays hold numbers; tensors hold numbers too, on a gpu",
    "naïve café déjà vu: 3.14159 and 1,000,000 are numbers",
    "an information retrieval system ranks documents for a query",
] * 4


def wordpiece_vocabulary() -> dict[str, int]:
    """An uncased WordPiece vocabulary of a few hundred pieces."""
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer.get_vocab()


def _byte_level(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def _roberta() -> PreTrainedTokenizerFast:
    trained = _byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    model = json.loads(trained.to_str())["model"]
    return RobertaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


def _modernbert() -> PreTrainedTokenizerFast:
    tokenizer = _byte_level(["[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"])
    ids = [("[CLS]", tokenizer.token_to_id("[CLS]")), ("[SEP]", tokenizer.token_to_id("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ids
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
    )


def _deberta() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=special, unk_token="[UNK]", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
    return DebertaV2Tokenizer(vocab=[(piece, score) for piece, score in pieces], unk_id=3)


def _tokenizer(family: str) -> PreTrainedTokenizerFast:
    if family in ("bert", "electra"):
        return BertTokenizer(vocab=wordpiece_vocabulary())
    return {"roberta": _roberta, "deberta": _deberta, "modernbert": _modernbert}[family]()


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each backbone family in turn."""
    return request.param


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[[str], PreTrainedTokenizerFast]:
    """Gives one tokenizer per family."""
    made: dict[str, PreTrainedTokenizerFast] = {}

    def make(family: str) -> PreTrainedTokenizerFast:
        if family not in made:
            made[family] = _tokenizer(family)
        return made[family]

    return make


def _config(family: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "pad_token_id": tokenizer.pad_token_id,
        "num_labels": 1,
        # Random logits of the default 0.02 hardly differ; these spread over about one unit.
        "initializer_range": 0.3,
    }
    if family == "bert":
        return BertConfig(**shape, max_position_embeddings=128)
    if family == "electra":
        return ElectraConfig(**shape, embedding_size=16, max_position_embeddings=128)
    if family == "roberta":
        return RobertaConfig(**shape, max_position_embeddings=130, type_vocab_size=1)
    if family == "deberta":
        return DebertaV2Config(
            **shape,
            max_position_embeddings=128,
            type_vocab_size=0,
            relative_attention=True,
            position_buckets=16,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
        )
    return ModernBertConfig(
        **shape,
        max_position_embeddings=128,
        local_attention=16,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
    )


@pytest.fixture(scope="session")
def make_model_folder(
    tmp_path_factory: pytest.TempPathFactory,
    make_tokenizer: Callable[[str], PreTrainedTokenizerFast],
) -> Callable[[str], Path]:
    """Gives the folder of a random cross-encoder of a family, two layers, width 32."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            tokenizer = make_tokenizer(family)
            torch.manual_seed(7)
            model = AutoModelForSequenceClassification.from_config(_config(family, tokenizer))
            model.save_pretrained(made[family])
            tokenizer.save_pretrained(made[family])
        return made[family]

    return make
