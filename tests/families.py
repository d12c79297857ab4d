"""Configurations of tiny models of every family that is trained."""

from transformers import (
    BertConfig,
    DebertaV2Config,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
)

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "num_labels": 1,
}
FAMILIES = {
    "bert": BertConfig(**SMALL, pad_token_id=0),
    "electra": ElectraConfig(**SMALL, pad_token_id=0, embedding_size=16),
    "roberta": RobertaConfig(**SMALL, pad_token_id=1),
    "deberta": DebertaV2Config(
        **SMALL, pad_token_id=0, relative_attention=True, pos_att_type=["p2c", "c2p"]
    ),
    "deberta-v3": DebertaV2Config(
        **SMALL | {"type_vocab_size": 0},
        pad_token_id=0,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
        max_relative_positions=-1,
        pooler_hidden_size=32,
    ),
    "modernbert": ModernBertConfig(
        **SMALL, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3
    ),
}
