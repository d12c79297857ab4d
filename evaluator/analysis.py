"""How BM25 cuts texts into words: bm25s' way with Snowball stems, or Lucene's English analysis."""

import re
from collections.abc import Iterable

from xsweep import ConfigError

LUCENE_STOP_WORDS = frozenset(
    [
        *("a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is"),
        *("it", "no", "not", "of", "on", "or", "such", "that", "the", "their", "then", "there"),
        *("these", "they", "this", "to", "was", "will", "with"),
    ]
)
_WORD = re.compile(r"\w+(?:['’.]\w+)*")
"""Unicode's word boundaries as far as they matter in English: `don't` and `3.14` stay whole."""


def snowball_words(texts: Iterable[str], language: str | None) -> list[list[str]]:
    """Words of two letters or more, without the language's stop words, stemmed; None: neither.

    Raises ConfigError for a language that Snowball does not know.
    """
    import bm25s
    import Stemmer

    if language is not None and language not in Stemmer.algorithms():
        known = ", ".join(Stemmer.algorithms())
        raise ConfigError(f"unknown stemmer {language!r}: use null or one of {known}")
    return bm25s.tokenize(
        list(texts),
        stopwords=language,
        stemmer=Stemmer.Stemmer(language) if language else None,
        return_ids=False,
        show_progress=False,
    )


def lucene_words(texts: Iterable[str]) -> list[list[str]]:
    """Lucene's English analysis, Anserini's default: possessives cut, 33 stop words, Porter stems.

    "The runner's 3.14 U.S. dogs" gives runner, 3.14, u., dog.
    """
    import Stemmer

    stem = Stemmer.Stemmer("porter").stemWords
    analysed = []
    for text in texts:
        words = (word.removesuffix("'s").removesuffix("’s") for word in _WORD.findall(text.lower()))
        analysed.append(stem([word for word in words if word not in LUCENE_STOP_WORDS]))
    return analysed
