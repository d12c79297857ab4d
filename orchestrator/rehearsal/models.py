"""Tiny random models: the real architecture and pair template of each family, two narrow layers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xsweep.evaluator.data.files import atomic_write
from xsweep.orchestrator.rehearsal.corpus import CODAS, ONSETS, VOWELS, corpus, seed_of, words

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast


FAMILY_OF = {
    "deberta": "deberta",
    "roberta": "roberta",
    "electra": "electra",
    "ettin": "modernbert",
    "modernbert": "modernbert",
    "distilbert": "distilbert",
}
"""What a model's name says of its family; BERT's where nothing does (MiniLM is one)."""


POSITIONS = 512


WHOLE = 100
"""Generated words that are one token each; the others are cut."""


Head = Literal["none", "masked", "score"]
"""What a model has above the encoder: nothing, as published backbones, a masked language model's
(SPLADE is one), or the one logit of a cross-encoder."""


def family_of(name: str) -> str:
    """The family of a Hugging Face id: `FacebookAI/roberta-base` is of `roberta`."""
    lowered = name.lower()
    return next((family for part, family in FAMILY_OF.items() if part in lowered), "bert")


def write_model(folder: Path, name: str, *, family: str, head: Head) -> None:
    """Writes config, weights and tokenizer, unless they are there.

    The weights are random under a seed from `name`; `family` is a name that tells the family.
    """
    if (folder / "config.json").exists():
        return
    import torch
    from transformers import (
        AutoModel,
        AutoModelForMaskedLM,
        AutoModelForSequenceClassification,
    )

    from xsweep.evaluator.models.cross_encoder import quiet_loading

    kind: Any = {
        "none": AutoModel,
        "masked": AutoModelForMaskedLM,
        "score": AutoModelForSequenceClassification,
    }[head]
    tokenizer = TOKENIZERS[family_of(family)]()
    config = _config(family_of(family), tokenizer)
    config.num_labels = 1
    with atomic_write(folder) as draft:
        with quiet_loading(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(name))
            kind.from_config(config).save_pretrained(draft)
        tokenizer.save_pretrained(draft)


def _config(family: str, tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedConfig":
    from transformers import (
        BertConfig,
        DebertaV2Config,
        DistilBertConfig,
        ElectraConfig,
        ModernBertConfig,
        RobertaConfig,
    )

    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "pad_token_id": tokenizer.pad_token_id,
        # Scores of the default 0.02 hardly differ; these spread over about one unit.
        "initializer_range": 0.3,
    }
    match family:
        case "electra":
            return ElectraConfig(**shape, embedding_size=16, max_position_embeddings=POSITIONS)
        case "roberta":
            return RobertaConfig(**shape, max_position_embeddings=POSITIONS + 2, type_vocab_size=1)
        case "deberta":
            relative = {"relative_attention": True, "position_buckets": 16}
            shape |= {**relative, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
            return DebertaV2Config(**shape, max_position_embeddings=POSITIONS, type_vocab_size=0)
        case "modernbert":
            ends = {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
            return ModernBertConfig(
                **shape,
                **ends,
                bos_token_id=tokenizer.cls_token_id,
                eos_token_id=tokenizer.sep_token_id,
                max_position_embeddings=POSITIONS,
                local_attention=16,
            )
        case "distilbert":
            return DistilBertConfig(
                vocab_size=len(tokenizer),
                dim=32,
                hidden_dim=64,
                n_layers=2,
                n_heads=2,
                pad_token_id=tokenizer.pad_token_id,
                max_position_embeddings=POSITIONS,
                initializer_range=0.3,
            )
    return BertConfig(**shape, max_position_embeddings=POSITIONS)


def _texts() -> list[str]:
    return list(corpus("tokenizers", 200, 1).documents.values())


def _parts() -> list[str]:
    """Letters and syllables, which any generated word can be cut into."""
    letters = sorted({*ONSETS, *VOWELS, *filter(None, CODAS)})
    return letters + [onset + vowel for onset in ONSETS for vowel in VOWELS]


# WordPiece and Unigram vocabularies are written and not trained: the trainers of `tokenizers` end
# with another one each time, and a rehearsal's figures would change with them.
def _wordpiece() -> "PreTrainedTokenizerFast":
    from transformers import BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *_parts(), *(f"##{part}" for part in _parts()), *words()[:WHOLE]]
    return BertTokenizer(vocab={piece: row for row, piece in enumerate(dict.fromkeys(pieces))})


def _byte_pairs(special: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def _roberta() -> "PreTrainedTokenizerFast":
    from transformers import RobertaTokenizer

    trained = _byte_pairs(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    model = json.loads(trained.to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    return RobertaTokenizer(vocab=model["vocab"], merges=merges)


def _modernbert() -> "PreTrainedTokenizerFast":
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = _byte_pairs(["[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"])
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ids
    )
    names = ("cls", "sep", "pad", "unk", "mask")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{name}_token": f"[{name.upper()}]" for name in names},
    )


def _deberta() -> "PreTrainedTokenizerFast":
    from transformers import DebertaV2Tokenizer

    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    # Logarithms of probabilities: a whole word before its syllables, those before their letters.
    pieces = dict.fromkeys(special, 0.0)
    pieces |= {part: -9.0 if len(part) == 1 else -7.0 for part in ("\u2581", *_parts())}
    pieces |= {f"\u2581{word}": -2.0 - 0.01 * rank for rank, word in enumerate(words()[:WHOLE])}
    return DebertaV2Tokenizer(vocab=list(pieces.items()), unk_id=special.index("[UNK]"))


TOKENIZERS: dict[str, Callable[[], "PreTrainedTokenizerFast"]] = {
    "bert": _wordpiece,
    "electra": _wordpiece,
    "distilbert": _wordpiece,
    "roberta": _roberta,
    "modernbert": _modernbert,
    "deberta": _deberta,
}
