from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from xsweep.evaluator.models.tokenizer import tokenize
from xsweep.evaluator.pairs import PairEncoder

TEXT = st.text(
    st.sampled_from("abcdefghij klmnop qrstuvwxyz.,;-'  \t\nÉéß京😀019[]<>/▁ĠA"), max_size=60
)


def _cut(tokenizer: PreTrainedTokenizerFast, text: str) -> np.ndarray:
    return tokenize(tokenizer, [text], 1000)[0]


@given(query=TEXT, document=TEXT)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("name", ["bert", "roberta", "deberta", "modernbert"])
def test_joined_ids_equal_the_tokenizers_own_pair_encoding(
    make_tokenizer: Callable, name: str, query: str, document: str
) -> None:
    tokenizer = make_tokenizer(name)
    encoder = PairEncoder(tokenizer)
    pair = encoder.encode(_cut(tokenizer, query), _cut(tokenizer, document), 1000, 1000)
    own = tokenizer([query], [document])  # lists, since a lone "" would count as no document
    assert pair.input_ids.tolist() == own["input_ids"][0]
    if "token_type_ids" in own:
        assert pair.token_type_ids is not None
        assert pair.token_type_ids.tolist() == own["token_type_ids"][0]
    else:
        assert pair.token_type_ids is None


@given(texts=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("name", ["bert", "roberta", "deberta", "modernbert"])
def test_pairs_joined_by_one_call_equal_those_joined_one_by_one(
    make_tokenizer: Callable, name: str, texts: list[tuple[str, str]]
) -> None:
    tokenizer = make_tokenizer(name)
    encoder = PairEncoder(tokenizer)
    pairs = [(_cut(tokenizer, query), _cut(tokenizer, document)) for query, document in texts]
    own = tokenizer(*map(list, zip(*texts, strict=True)))
    together = encoder.encode_all([(q.astype(np.uint16), d) for q, d in pairs], 1000, 1000)
    assert [pair.input_ids.tolist() for pair in together] == own["input_ids"]
    if encoder.has_segments:
        segments = [pair.token_type_ids.tolist() for pair in together]  # type: ignore[union-attr]
        assert segments == own["token_type_ids"]
    encoder.max_tokens = 8
    for found, pair in zip(encoder.encode_all(pairs, 3, 5), pairs, strict=True):
        alone = encoder.encode(*pair, 3, 5)
        assert found.input_ids.tolist() == alone.input_ids.tolist()
        assert found.input_ids.dtype == np.int64


def test_query_and_document_are_cut_separately_and_nothing_else(
    family: str, make_tokenizer: Callable
) -> None:
    tokenizer = make_tokenizer(family)
    encoder = PairEncoder(tokenizer)
    query = _cut(tokenizer, "what is the capital of france")
    document = _cut(tokenizer, "the quick brown fox jumps over the lazy dog")
    short = encoder.encode(query, document, 3, 5).input_ids.tolist()
    assert len(short) == 3 + 5 + encoder.overhead_tokens
    assert short == encoder.encode(query[:3], document[:5], 99, 99).input_ids.tolist()


def test_templates_of_the_families_are_the_published_ones(make_tokenizer: Callable) -> None:
    def template(name: str) -> str:
        tokenizer = make_tokenizer(name)
        empty = np.array([], dtype=np.int32)
        ids = PairEncoder(tokenizer).encode(empty, empty, 9, 9).input_ids
        return " ".join(tokenizer.convert_ids_to_tokens(ids.tolist()))

    assert template("bert") == "[CLS] [SEP] [SEP]"
    assert template("roberta") == "<s> </s> </s> </s>"
    assert template("deberta") == "[CLS] [SEP] [SEP]"
    assert template("modernbert") == "[CLS] [SEP] [SEP]"


@given(
    query=st.integers(0, 40),
    document=st.integers(0, 40),
    query_tokens=st.integers(1, 30),
    document_tokens=st.integers(1, 30),
    max_tokens=st.integers(4, 40),
)
def test_lengths_are_those_of_the_encoded_pairs_and_never_pass_the_model(
    make_tokenizer: Callable,
    query: int,
    document: int,
    query_tokens: int,
    document_tokens: int,
    max_tokens: int,
) -> None:
    encoder = PairEncoder(make_tokenizer("bert"))
    encoder.max_tokens = max_tokens
    ids = np.full(40, 7)
    pair = encoder.encode(ids[:query], ids[:document], query_tokens, document_tokens)
    lengths = encoder.lengths(
        np.array([query]), np.array([document]), query_tokens, document_tokens
    )
    assert len(pair.input_ids) == lengths[0] <= max_tokens


def test_collated_batch_equals_the_tokenizers_padded_one(
    family: str, make_tokenizer: Callable
) -> None:
    tokenizer = make_tokenizer(family)
    encoder = PairEncoder(tokenizer)
    queries = ["who was the first king", "numbers", ""]
    documents = ["france", "numpy arrays hold numbers on a gpu", ""]
    batch = encoder.collate(
        [
            encoder.encode(_cut(tokenizer, query), _cut(tokenizer, document), 99, 99)
            for query, document in zip(queries, documents, strict=True)
        ]
    )
    own = tokenizer(queries, documents, padding=True, return_tensors="pt")
    assert batch.keys() == own.keys()
    for name, tensor in own.items():
        assert batch[name].tolist() == tensor.tolist(), name
