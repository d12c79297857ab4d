"""The token ids of a collection's documents: written once, memory-mapped ever after.

`ids.bin` holds all ids end to end (uint16 where the vocabulary allows, else uint32), `ends.npy`
where each document ends (int64), `documents.txt` the document ids in that order, one a line.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evaluator.specs import TokensSpec
from xsweep import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEXTS_PER_CALL = 2048


class TokenStore:
    """Document id to token ids (without special tokens), read from disk as needed."""

    def __init__(self, folder: Path | str) -> None:
        """Opens a folder that `build` wrote. Raises DataError where it is not one."""
        folder = Path(folder)
        try:
            settings = json.loads((folder / "tokens.json").read_text())
            self.max_tokens: int = settings["max_tokens"]
            self.fingerprint: str = settings["fingerprint"]
            ends = np.load(folder / "ends.npy")
            ids = (folder / "documents.txt").read_text(encoding="utf-8").split("\n")[:-1]
            dtype = np.dtype(settings["dtype"])
            size = (folder / "ids.bin").stat().st_size // dtype.itemsize
            self._ids = np.memmap(folder / "ids.bin", dtype, "r") if size else np.empty(0, dtype)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}: not a token store ({error}): run its job again") from error
        if len(ids) != len(ends) or (len(ends) and ends[-1] != size):
            raise DataError(f"{folder}: the token store's files do not fit: run its job again")
        self._starts = np.concatenate(([0], ends))
        self._rows = {doc_id: row for row, doc_id in enumerate(ids)}

    def __getitem__(self, doc_id: str) -> np.ndarray:
        """Token ids of a document. Raises DataError for an unknown id."""
        try:
            row = self._rows[doc_id]
        except KeyError:
            raise DataError(f"the token store has no document {doc_id!r}") from None
        return self._ids[self._starts[row] : self._starts[row + 1]]

    def __contains__(self, doc_id: object) -> bool:
        return doc_id in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def fits(self, fingerprint: str, max_tokens: int) -> bool:
        """Whether a tokenizer (see `tokenizers.fingerprint`) would cut texts into these ids."""
        return self.fingerprint == fingerprint and self.max_tokens >= max_tokens

    @property
    def lengths(self) -> np.ndarray:
        """int64[documents]: the number of stored tokens of each, in the order of iteration."""
        return np.diff(self._starts)

    @classmethod
    def build(
        cls,
        folder: Path | str,
        texts: Iterable[tuple[str, str]],
        tokenizer: "PreTrainedTokenizerFast",
        max_tokens: int,
    ) -> "TokenStore":
        """Tokenizes (id, text) pairs, a few thousand at a time, and writes them to `folder`."""
        from evaluator.tokenizers import fingerprint, tokenize

        folder = Path(folder)
        dtype = np.dtype(np.uint16 if len(tokenizer) < 2**16 else np.uint32)
        lengths: list[int] = []
        remaining = iter(texts)
        with (
            (folder / "ids.bin").open("wb") as ids_file,
            (folder / "documents.txt").open("w", encoding="utf-8", newline="\n") as names_file,
        ):
            while chunk := list(islice(remaining, TEXTS_PER_CALL)):
                for doc_id, _ in chunk:
                    names_file.write(f"{doc_id}\n")
                for ids in tokenize(tokenizer, [text for _, text in chunk], max_tokens):
                    ids_file.write(ids.astype(dtype).tobytes())
                    lengths.append(len(ids))
        np.save(folder / "ends.npy", np.cumsum(lengths, dtype=np.int64))
        settings = {
            "dtype": dtype.name,
            "max_tokens": max_tokens,
            "documents": len(lengths),
            "fingerprint": fingerprint(tokenizer),
        }
        (folder / "tokens.json").write_text(json.dumps(settings) + "\n")
        return cls(folder)


def prepare_tokens(spec: TokensSpec, inputs: Mapping[str, Path], out: Path) -> None:
    """Job prepare/tokens: the token store of a collection's documents, for one tokenizer."""
    from evaluator.collections import load_collection
    from evaluator.tokenizers import load_tokenizer

    documents = load_collection(spec.documents).documents()
    store = TokenStore.build(out, documents, load_tokenizer(spec.tokenizer), spec.max_tokens)
    summary = {"documents": len(store), "tokens": int(store.lengths.sum())}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
