"""Tiny random models: the real architecture and pair template of each family, two narrow layers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xsweep.evaluator.data.files import atomic_write
from xsweep.evaluator.prompts import PROMPTS
from xsweep.orchestrator.rehearsal.datasets import CODAS, ONSETS, VOWELS, corpus, seed_of, words

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

FAMILIES = ("deberta", "roberta", "electra", "modernbert", "distilbert")
"""Families, each a part of its models' names; all other models are BERT's, MiniLM among them."""

POSITIONS = 512

WHOLE_WORDS = 100
"""Generated words that are one token each; all others are split."""

Head = Literal["none", "masked", "score", "next"]
"""Layers above the encoder: none, as published backbones; a masked language model's, as SPLADE;
the one logit of a cross-encoder; or a decoder's, which gives the next token."""
HEADS: dict[str, Head] = {
    **{"bi_encoder": "none", "cross_encoder": "score"},
    **{"causal_reranker": "next", "listwise_llm": "next"},
}
"""Heads of a teacher's models, by its type."""


def family_of(name: str) -> str:
    """The family of a Hugging Face id: `roberta` for `FacebookAI/roberta-base`."""
    lowered = name.lower().replace("ettin", "modernbert")
    return next((family for family in FAMILIES if family in lowered), "bert")


def write_model(folder: Path, name: str, *, family: str, head: Head) -> None:
    """Write config, random weights and tokenizer, unless they exist.

    `name` seeds the weights; the family is that of the model's name `family`.
    """
    if (folder / "config.json").exists():
        return
    import torch
    from transformers import (
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForSequenceClassification,
    )

    from xsweep.evaluator.models.cross_encoder import quiet_loading

    kind: Any = {
        "none": AutoModel,
        "masked": AutoModelForMaskedLM,
        "score": AutoModelForSequenceClassification,
        "next": AutoModelForCausalLM,
    }[head]
    family = "qwen3" if head == "next" else family_of(family)
    tokenizer = _qwen3() if head == "next" else TOKENIZERS[family]()
    config = _config(family, tokenizer)
    config.num_labels = 1
    with atomic_write(folder) as draft:
        with quiet_loading(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(name))
            kind.from_config(config).save_pretrained(draft)
        tokenizer.save_pretrained(draft)


def _config(family: str, tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedConfig":
    from transformers import AutoConfig

    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    own: dict[str, Any] = {}
    match family:
        case "electra":
            own = {"embedding_size": 16}
        case "roberta":
            own = {"max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1}
        case "deberta":
            own = {"relative_attention": True, "position_buckets": 16, "type_vocab_size": 0}
            own |= {"pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
        case "modernbert":
            first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
            own = {"cls_token_id": first, "sep_token_id": last, "local_attention": 16}
            own |= {"bos_token_id": first, "eos_token_id": last}
        case "qwen3":
            own = {"head_dim": 16, "num_key_value_heads": 1, "max_position_embeddings": 4096}
        case "distilbert":
            shape = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2}
    common = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "max_position_embeddings": POSITIONS,
        # Scores hardly differ at the default of 0.02; at 0.3 they spread over about one unit.
        "initializer_range": 0.3,
    }
    model_type = "deberta-v2" if family == "deberta" else family
    return AutoConfig.for_model(model_type, **{**common, **shape, **own})


def _pieces() -> list[str]:
    """Letters and syllables, into which every generated word can be split."""
    letters = sorted({*ONSETS, *VOWELS, *filter(None, CODAS)})
    return letters + [onset + vowel for onset in ONSETS for vowel in VOWELS]


# WordPiece and Unigram vocabularies are written and not trained: the trainers of `tokenizers` are
# not deterministic, and a rehearsal's results would change with the vocabulary.
def _wordpiece() -> "PreTrainedTokenizerFast":
    from transformers import BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    whole = list(words())[:WHOLE_WORDS]
    pieces = [*special, *_pieces(), *(f"##{piece}" for piece in _pieces()), *whole]
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
    tokenizer.train_from_iterator(list(corpus("tokenizers", 200, 1).documents.values()), trainer)
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


def _qwen3() -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    # The answers of all prompts are tokens, as they are in published vocabularies.
    answers = dict.fromkeys(each for prompt in PROMPTS.values() for each in prompt["answers"])
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *answers]
    tokenizer = _byte_pairs(special)
    names = {"pad_token": special[0], "eos_token": special[0]}
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    found.chat_template = "{% for turn in messages %}{{ turn['content'] }}\n{% endfor %}"
    return found


def _deberta() -> "PreTrainedTokenizerFast":
    from transformers import DebertaV2Tokenizer

    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    # Log-probabilities that prefer a whole word to its syllables, and these to their letters.
    pieces = dict.fromkeys(special, 0.0)
    pieces |= {piece: -9.0 if len(piece) == 1 else -7.0 for piece in ("\u2581", *_pieces())}
    whole = list(words())[:WHOLE_WORDS]
    pieces |= {f"\u2581{word}": -2.0 - 0.01 * rank for rank, word in enumerate(whole)}
    return DebertaV2Tokenizer(vocab=list(pieces.items()), unk_id=special.index("[UNK]"))


TOKENIZERS: dict[str, Callable[[], "PreTrainedTokenizerFast"]] = {
    **dict.fromkeys(("bert", "electra", "distilbert"), _wordpiece),
    **{"roberta": _roberta, "modernbert": _modernbert, "deberta": _deberta},
}
