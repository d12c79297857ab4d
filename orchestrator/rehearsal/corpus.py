"""Generated texts: passages of made-up words, and queries that repeat words of what is relevant."""

import hashlib
from typing import NamedTuple

import numpy as np

WORDS = 600


ONSETS, VOWELS, CODAS = "bdfgklmnprstvz", "aeiou", ("", "n", "s")
"""What syllables are made of; words end in one of the last."""


GRADES = (1, 2, 1, 3)
"""Of the relevant passages of a query, in turn, where a collection is graded."""


class Corpus(NamedTuple):
    """A small collection."""

    documents: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


def words() -> list[str]:
    """The vocabulary of all collections: pronounceable, the same every time.

    One vocabulary for all, so that a tokenizer that was made for it reads every collection.
    """
    random = np.random.default_rng(0)
    onsets, vowels = list(ONSETS), list(VOWELS)
    made: dict[str, None] = {}
    while len(made) < WORDS:
        syllables = int(random.integers(1, 4))
        word = "".join(random.choice(onsets) + random.choice(vowels) for _ in range(syllables))
        made[word + random.choice(CODAS)] = None
    return list(made)


def corpus(
    name: str,
    documents: int,
    queries: int,
    *,
    document_ids: str = "{}",
    query_ids: str = "{}",
    first_query: int = 0,
    graded: bool = False,
) -> Corpus:
    """A collection that is a function of its arguments alone.

    Every query has two relevant documents. `document_ids` and `query_ids` are patterns of numbers;
    queries from `first_query` on let several sets of queries share the documents.
    """
    vocabulary = np.array(words())
    random = np.random.default_rng(seed_of(name))
    # Zipf's law, as in any language: some words are everywhere, most tell documents apart.
    weights = 1 / np.arange(1, WORDS + 1)
    weights /= weights.sum()
    texts = [
        " ".join(random.choice(vocabulary, size=int(random.integers(12, 40)), p=weights))
        for _ in range(documents)
    ]
    found = Corpus({document_ids.format(row): text for row, text in enumerate(texts)}, {}, {})
    for number in range(first_query, first_query + queries):
        own = np.random.default_rng([seed_of(name), number])
        rows = own.choice(documents, size=2, replace=False).tolist()
        rarest = sorted(set(texts[rows[0]].split()), key=lambda w: -words_rank()[w])[:3]
        asked = [*rarest, *own.choice(texts[rows[1]].split(), size=2)]
        query_id = query_ids.format(number)
        found.queries[query_id] = " ".join(asked)
        grades = GRADES if graded else (1, 1)
        found.qrels[query_id] = {
            document_ids.format(row): grades[(number + place) % len(grades)]
            for place, row in enumerate(rows)
        }
    return found


def seed_of(name: str) -> int:
    """A seed that depends on a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")


_RANKS: dict[str, int] = {}


def words_rank() -> dict[str, int]:
    """How common each word is: 0 the most common."""
    if not _RANKS:
        _RANKS.update({word: rank for rank, word in enumerate(words())})
    return _RANKS
