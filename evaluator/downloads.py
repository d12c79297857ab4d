"""What ir_datasets would download for a data set: sizes, checksums, licences, and what is there.

Read from the list that ir_datasets carries, so that asking needs no network.
"""

import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from evaluator.specs import IrdsSpec
from xsweep import DataError

LICENCES = {
    "msmarco-passage": "MS MARCO terms: non-commercial research",
    "msmarco-passage-v2": "MS MARCO terms: non-commercial research",
    "beir/scifact": "claims CC BY 4.0, abstracts ODC-By 1.0",
    "beir": "each set as its source says: github.com/beir-cellar/beir",
    "nano-beir": "as the sets of BEIR that it samples",
    "lotte": "released as Apache 2.0; texts of Stack Exchange are CC BY-SA",
    "disks45": "an agreement with NIST is needed: trec.nist.gov/data/cd45",
    "cranfield": "free for research, no formal licence",
    "vaswani": "free for research, no formal licence",
}
"""By the longest name that a data set's id starts with."""

_SHARED = {
    "msmarco-passage": {"collectionandqueries"},
    "msmarco-passage-v2": {"passages"},
    "disks45": {"docs", "robust04-queries", "robust04-qrels"},
}
"""Which files without a folder all data sets of a family need; other families: all of them."""

_IN_SHARED = {"msmarco-passage/dev/small"}
"""Data sets whose queries and qrels lie in the shared archive."""

_NOT_NEEDED = {"scoreddocs", "docpairs"}


class Source(NamedTuple):
    """One file that a data set is made of."""

    name: str
    path: Path
    """Where it lies, or would."""
    present: bool
    size_bytes: int | None
    """Of the file that is here, else as published."""
    md5: str | None
    """As published."""
    how: str
    """Its address, or how to get it where there is none."""


def sources(spec: IrdsSpec) -> list[Source]:
    """The files of a data set. Raises DataError for a family that ir_datasets does not list."""
    family, _, rest = spec.id.partition("/")
    home = home_of(spec)
    found = [
        _source(home / family, name, entry)
        for name, entry in _needed(family, rest, _listed(family, spec.id))
    ]
    return sorted(found)


def home_of(spec: IrdsSpec) -> Path:
    """The folder that holds the data set, whether it exists or not."""
    return Path(spec.home or os.environ.get("IR_DATASETS_HOME") or "~/.ir_datasets").expanduser()


def licence(dataset: str) -> str:
    """A note on the licence of a data set's texts."""
    parts = dataset.split("/")
    for length in range(len(parts), 0, -1):
        if note := LICENCES.get("/".join(parts[:length])):
            return note
    return f"see https://ir-datasets.com/{parts[0]}.html"


def fetch(spec: IrdsSpec) -> int:
    """Downloads what is missing of a data set, verified and unpacked; gives its documents' number.

    Progress is shown on stderr. Raises DataError, within seconds, where a file cannot be had: it
    needs an agreement, or there is no network.
    """
    from evaluator.irds import load

    for source in sources(spec):
        if not source.present and not source.how.startswith("http"):
            raise DataError(f"data set {spec.id!r}: {source.path} is missing. {source.how}")
    return sum(1 for _ in load(spec).documents())


@cache
def _downloads() -> Mapping[str, Any]:
    return json.loads(files("ir_datasets").joinpath("etc/downloads.json").read_text())


def _listed(family: str, dataset: str) -> Mapping[str, Any]:
    listed = _downloads()
    if family not in listed:
        raise DataError(f"ir_datasets lists no files of {dataset!r}")
    return listed[family]


def _needed(
    family: str, rest: str, listed: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    entries = dict(_flat(listed))
    whole = [name for name in entries if rest == name or rest.startswith(f"{name}/")]
    if whole:  # one archive per data set, such as BEIR's
        name = max(whole, key=len)
        yield name, entries[name]
        return
    for name, entry in entries.items():
        folder, _, last = name.rpartition("/")
        if last in _NOT_NEEDED:
            continue
        if folder:
            needed = f"{rest}/".startswith(f"{folder}/") and f"{family}/{rest}" not in _IN_SHARED
        else:
            needed = last in _SHARED.get(family, {last})
        if needed:
            yield name, entry


def _flat(listed: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, entry in listed.items():
        if "url" in entry or "instructions" in entry:
            yield above + name, entry
        else:
            yield from _flat(entry, f"{above}{name}/")


def _source(folder: Path, name: str, entry: Mapping[str, Any]) -> Source:
    path = folder / entry.get("cache_path", name)
    if not path.exists():  # some are kept under a longer name, such as queries.tsv
        path = next(iter(sorted(path.parent.glob(f"{path.name}.*"))), path)
    present = path.exists()
    size = path.stat().st_size if present and path.is_file() else entry.get("size_hint")
    how = entry.get("url") or " ".join(str(entry["instructions"]).split())
    return Source(name, path, present, size, entry.get("expected_md5"), how)
