"""Where the token ids of pairs come from: a token store where it fits, else the texts."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from evaluator.tokenizers import fingerprint, tokenize
from evaluator.tokens import TokenStore
from xsweep import DataError

log = logging.getLogger(__name__)


class TextTokens:
    """A tokenizer that cuts every text once, however many collections hold it."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self._known: dict[tuple[str, int], np.ndarray] = {}

    def __call__(self, texts: Iterable[str], max_tokens: int) -> list[np.ndarray]:
        """The first `max_tokens` token ids of each text."""
        texts = list(texts)
        new = [text for text in dict.fromkeys(texts) if (text, max_tokens) not in self._known]
        for text, ids in zip(new, tokenize(self.tokenizer, new, max_tokens), strict=True):
            self._known[text, max_tokens] = ids
        return [self._known[text, max_tokens] for text in texts]


class Sources(NamedTuple):
    """Where the texts of one collection's queries and documents come from."""

    queries: Mapping[str, str]
    texts: Callable[[Iterable[str]], dict[str, str]]
    """Gives documents' texts by id; asked only for what the token store does not serve."""
    tokens: Path | None = None
    """A token store of the documents, used where the model's tokenizer made it."""

    def query_tokens(
        self, tokens: TextTokens, candidates: Iterable[str], max_tokens: int
    ) -> dict[str, np.ndarray]:
        """Ids of the named queries. Raises DataError where one has no text."""
        wanted = list(candidates)
        if unknown := [query_id for query_id in wanted if query_id not in self.queries]:
            raise DataError(f"{len(unknown)} queries, such as {unknown[0]!r}, have no text")
        ids = tokens((self.queries[query_id] for query_id in wanted), max_tokens)
        return dict(zip(wanted, ids, strict=True))

    def document_tokens(
        self, tokens: TextTokens, candidates: Mapping[str, Sequence[str]], max_tokens: int
    ) -> Mapping[str, np.ndarray]:
        """Ids of all candidates. Raises DataError where the collection lacks one."""
        wanted = dict.fromkeys(doc_id for docs in candidates.values() for doc_id in docs)
        if self.tokens:
            store = TokenStore(self.tokens)
            if store.fits(fingerprint(tokens.tokenizer), max_tokens):
                return {doc_id: store[doc_id][:max_tokens] for doc_id in wanted}
            log.info("token store %s is of another tokenizer or shorter: not used", self.tokens)
        texts = self.texts(wanted)
        return dict(zip(texts, tokens(texts.values(), max_tokens), strict=True))
