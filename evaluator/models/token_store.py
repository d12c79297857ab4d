"""Token ids of a collection's documents: written once, memory-mapped by every reader.

`ids.bin` holds all ids end to end (uint16 if the vocabulary allows, else uint32), `ends.npy`
the end of each document (int64), `documents.txt` the document ids in that order, one a line. If
these are the numbers from 0 on, as in MS MARCO, `tokens.json` has `numbered` and they are not read:
a dictionary of 8.8 million ids takes more than a gigabyte of every process.

`Sources` takes a pair's token ids from a store that fits the model's tokenizer, else from texts.
"""

import json
import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from xsweep.errors import DataError
from xsweep.evaluator import provenance
from xsweep.evaluator.data import load_collection
from xsweep.evaluator.models.tokenizer import fingerprint, load_tokenizer, tokenize
from xsweep.evaluator.specs import TokensSpec

TEXTS_PER_CALL = 2048

log = logging.getLogger(__name__)


class TokenStore:
    """Document id to token ids (without special tokens), read from disk as needed."""

    def __init__(self, folder: Path | str) -> None:
        """Opens a folder that `build` wrote. Raises DataError if it is not one."""
        folder = Path(folder)
        try:
            settings = json.loads((folder / "tokens.json").read_text())
            self.max_tokens: int = settings["max_tokens"]
            self.fingerprint: str = settings["fingerprint"]
            # Mapped: processes of one machine share the pages.
            self._ends = ends = np.asarray(np.load(folder / "ends.npy", mmap_mode="r"))
            self._rows: dict[str, int] | None = None
            if not settings.get("numbered"):
                ids = (folder / "documents.txt").read_text(encoding="utf-8").split("\n")[:-1]
                self._rows = {doc_id: row for row, doc_id in enumerate(ids)}
            dtype = np.dtype(settings["dtype"])
            size = (folder / "ids.bin").stat().st_size // dtype.itemsize
            mapped = np.memmap(folder / "ids.bin", dtype, "r") if size else np.empty(0, dtype)
            self._ids = np.asarray(mapped)  # a slice of a memmap takes ten times as long
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}: not a token store ({error}): run its job again") from error
        if len(self) != len(ends) or (len(ends) and ends[-1] != size):
            raise DataError(f"{folder}: the token store's files do not match: run its job again")

    def _row(self, doc_id: str) -> int | None:
        if self._rows is not None:
            return self._rows.get(doc_id)
        # `isdecimal` alone would accept digits of all scripts, and 007 is not an id here.
        row = int(doc_id) if doc_id.isdecimal() else -1
        return row if 0 <= row < len(self._ends) and str(row) == doc_id else None

    def __getitem__(self, doc_id: str) -> np.ndarray:
        """Token ids of a document. Raises DataError for an unknown id."""
        if (row := self._row(doc_id)) is None:
            raise DataError(f"the token store has no document {doc_id!r}")
        return self._ids[self._ends[row - 1] if row else 0 : self._ends[row]]

    def __contains__(self, doc_id: object) -> bool:
        return isinstance(doc_id, str) and self._row(doc_id) is not None

    def __iter__(self) -> Iterator[str]:
        return map(str, range(len(self._ends))) if self._rows is None else iter(self._rows)

    def __len__(self) -> int:
        return len(self._ends) if self._rows is None else len(self._rows)

    def fits(self, fingerprint: str, max_tokens: int) -> bool:
        """Compares the store's tokenizer (`tokenizer.fingerprint`) and length with those needed."""
        return self.fingerprint == fingerprint and self.max_tokens >= max_tokens

    @property
    def lengths(self) -> np.ndarray:
        """int64[documents]: the number of stored tokens of each, in the order of iteration."""
        return np.diff(self._ends, prepend=0)

    @classmethod
    def build(
        cls,
        folder: Path | str,
        texts: Iterable[tuple[str, str]],
        tokenizer: PreTrainedTokenizerFast,
        max_tokens: int,
    ) -> "TokenStore":
        """Tokenizes (id, text) pairs, a few thousand at a time, and writes them to `folder`."""
        folder = Path(folder)
        dtype = np.dtype(np.uint16 if len(tokenizer) < 2**16 else np.uint32)
        lengths, numbered = array("q"), True
        remaining = iter(texts)
        with (
            (folder / "ids.bin").open("wb") as ids_file,
            (folder / "documents.txt").open("w", encoding="utf-8", newline="\n") as names_file,
        ):
            while chunk := list(islice(remaining, TEXTS_PER_CALL)):
                for row, (doc_id, _) in enumerate(chunk, len(lengths)):
                    names_file.write(f"{doc_id}\n")
                    numbered = numbered and doc_id == str(row)
                for ids in tokenize(tokenizer, [text for _, text in chunk], max_tokens):
                    ids_file.write(ids.astype(dtype).tobytes())
                    lengths.append(len(ids))
        np.save(folder / "ends.npy", np.cumsum(np.array(lengths, dtype=np.int64)))
        settings = {
            "dtype": dtype.name,
            "max_tokens": max_tokens,
            "documents": len(lengths),
            "fingerprint": fingerprint(tokenizer),
            "numbered": numbered,
        }
        (folder / "tokens.json").write_text(json.dumps(settings) + "\n")
        return cls(folder)


def prepare_tokens(spec: TokensSpec, out: Path) -> None:
    """Job prepare/tokens: the token store of a collection's documents, for one tokenizer."""
    origin = provenance.collect(spec.model_dump(mode="json"))
    documents = load_collection(spec.documents).documents()
    store = TokenStore.build(out, documents, load_tokenizer(spec.tokenizer), spec.max_tokens)
    summary = {
        "documents": len(store),
        "documents_without_text": int((store.lengths == 0).sum()),
        "tokens": int(store.lengths.sum()),
    }
    provenance.seal(out, origin, summary)


class TextTokens:
    """A tokenizer that cuts every text once, even if several collections hold it."""

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
    """Sources of the texts, or token ids, of one collection's queries and documents."""

    queries: Mapping[str, str]
    texts: Callable[[Iterable[str]], dict[str, str]]
    """Gives documents' texts by id; called only if the token store does not fit."""
    tokens: Path | None = None
    """A token store of the documents, used if the model's tokenizer made it."""

    def query_texts(self, candidates: Iterable[str]) -> dict[str, str]:
        """Texts of the named queries. Raises DataError if one has none."""
        wanted = list(candidates)
        if unknown := [query_id for query_id in wanted if query_id not in self.queries]:
            raise DataError(f"{len(unknown)} queries, such as {unknown[0]!r}, have no text")
        return {query_id: self.queries[query_id] for query_id in wanted}

    def query_tokens(
        self, tokens: TextTokens, candidates: Iterable[str], max_tokens: int
    ) -> dict[str, np.ndarray]:
        """Token ids of the named queries. Raises DataError if one has no text."""
        texts = self.query_texts(candidates)
        return dict(zip(texts, tokens(texts.values(), max_tokens), strict=True))

    def document_tokens(
        self, tokens: TextTokens, candidates: Mapping[str, Sequence[str]], max_tokens: int
    ) -> Mapping[str, np.ndarray]:
        """Ids of all candidates. Raises DataError if the collection lacks one."""
        wanted = dict.fromkeys(doc_id for docs in candidates.values() for doc_id in docs)
        if self.tokens:
            store = TokenStore(self.tokens)
            if store.fits(fingerprint(tokens.tokenizer), max_tokens):
                return {doc_id: store[doc_id][:max_tokens] for doc_id in wanted}
            log.info("token store %s has another tokenizer or is shorter: not used", self.tokens)
        texts = self.texts(wanted)
        return dict(zip(texts, tokens(texts.values(), max_tokens), strict=True))
