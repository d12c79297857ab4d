"""Named suites of test collections: their ir_datasets ids, sizes and licences.

To add a suite, add its ids to `SUITES` and, if none of their prefixes is there yet, a size to
`SIZES` and a note to `LICENCES`.
"""

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from xsweep.errors import ConfigError, did_you_mean
from xsweep.evaluator.specs import IdenticalIds, IrdsSpec

TOKENS_PER_WORD = 1.35
"""Word pieces per word of English text."""


class Size(NamedTuple):
    """Size of a collection, from which forecasts are made."""

    queries: int
    """Number of judged queries."""
    documents: int
    words: float
    """Mean length of a document."""

    def document_tokens(self, limit: int) -> float:
        """Mean tokens of a document cut to `limit`, at most nine tenths of it: lengths vary."""
        return min(self.words * TOKENS_PER_WORD, 0.9 * limit)


_BEIR = {
    "arguana": ("beir/arguana", Size(1_406, 8_674, 167)),
    "climate-fever": ("beir/climate-fever", Size(1_535, 5_416_593, 85)),
    "dbpedia-entity": ("beir/dbpedia-entity/test", Size(400, 4_635_922, 50)),
    "fever": ("beir/fever/test", Size(6_666, 5_416_568, 85)),
    "fiqa": ("beir/fiqa/test", Size(648, 57_638, 132)),
    "hotpotqa": ("beir/hotpotqa/test", Size(7_405, 5_233_329, 46)),
    "nfcorpus": ("beir/nfcorpus/test", Size(323, 3_633, 232)),
    "nq": ("beir/nq", Size(3_452, 2_681_468, 79)),
    "quora": ("beir/quora/test", Size(10_000, 522_931, 11)),
    "scidocs": ("beir/scidocs", Size(1_000, 25_657, 176)),
    "scifact": ("beir/scifact/test", Size(300, 5_183, 214)),
    "trec-covid": ("beir/trec-covid", Size(50, 171_332, 161)),
    "webis-touche2020": ("beir/webis-touche2020/v2", Size(49, 382_545, 292)),
}
"""Sizes: Thakur et al. 2021, table 1 (https://arxiv.org/abs/2104.08663)."""
_BEIR_13 = {name: dataset for name, (dataset, _) in _BEIR.items()}
_CQADUPSTACK = (
    *("android", "english", "gaming", "gis", "mathematica", "physics", "programmers", "stats"),
    *("tex", "unix", "webmasters", "wordpress"),
)
_NANO = (
    *("arguana", "climate-fever", "dbpedia-entity", "fever", "fiqa", "hotpotqa", "msmarco"),
    *("nfcorpus", "nq", "quora", "scidocs", "scifact", "webis-touche2020"),
)
_LOTTE = ("writing", "recreation", "science", "technology", "lifestyle")

SUITES: dict[str, dict[str, str]] = {
    "in-domain": {
        "msmarco-dev": "msmarco-passage/dev/small",
        "trec-dl-2019": "msmarco-passage/trec-dl-2019/judged",
        "trec-dl-2020": "msmarco-passage/trec-dl-2020/judged",
    },
    "trec-dl-later": {
        "trec-dl-2021": "msmarco-passage-v2/trec-dl-2021/judged",
        "trec-dl-2022": "msmarco-passage-v2/trec-dl-2022/judged",
        "trec-dl-2023": "msmarco-passage-v2/trec-dl-2023/judged",
        "dl-hard": "msmarco-passage/trec-dl-hard",
    },
    "beir-13": _BEIR_13,
    "beir": _BEIR_13 | {f"cqadupstack-{part}": f"beir/cqadupstack/{part}" for part in _CQADUPSTACK},
    "nano-beir": {f"nano-{part}": f"nano-beir/{part}" for part in _NANO},
    "lotte-search": {f"lotte-{part}-search": f"lotte/{part}/test/search" for part in _LOTTE},
    "lotte-forum": {f"lotte-{part}-forum": f"lotte/{part}/test/forum" for part in _LOTTE},
    "robust04": {"robust04": "disks45/nocr/trec-robust-2004"},
}
"""Suite name to {collection name: ir_datasets id}."""

_MSMARCO = 8_841_823
SIZES = {
    "msmarco-passage/train": Size(502_939, _MSMARCO, 56),
    "msmarco-passage/dev/small": Size(6_980, _MSMARCO, 56),
    "msmarco-passage/dev/2": Size(4_281, _MSMARCO, 56),
    "msmarco-passage/trec-dl-2019/judged": Size(43, _MSMARCO, 56),
    "msmarco-passage/trec-dl-2020/judged": Size(54, _MSMARCO, 56),
    "msmarco-passage": Size(6_980, _MSMARCO, 56),
    "lotte/writing": Size(1_071, 199_994, 130),
    "lotte/recreation": Size(924, 166_975, 130),
    "lotte/science": Size(617, 1_694_164, 130),
    "lotte/technology": Size(596, 638_509, 130),
    "lotte/lifestyle": Size(661, 119_461, 130),
    "disks45/nocr": Size(249, 528_155, 480),
    "cranfield": Size(225, 1_400, 165),
    "vaswani": Size(93, 11_429, 42),
    **{f"beir/{name}": size for name, (_, size) in _BEIR.items()},
    **{f"nano-beir/{name}": Size(50, 4_500, size.words) for name, (_, size) in _BEIR.items()},
    "nano-beir/msmarco": Size(50, 5_043, 56),
}
"""Prefix of ir_datasets ids to size; the longest prefix counts."""

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
"""Prefix of ir_datasets ids to a note on the texts' licence; the longest prefix counts."""

QUERIES_ARE_DOCUMENTS = (
    *("beir/arguana", "beir/quora", "beir/cqadupstack"),
    *("nano-beir/arguana", "nano-beir/quora"),
)
"""Prefixes of ir_datasets ids whose queries are documents of their corpus, under the same ids.

BEIR, Anserini and MTEB leave a query's own document out of its results."""

Value = TypeVar("Value")


def suite(name: str, home: str | None = None) -> list[IrdsSpec]:
    """The collections of a suite. Raises ConfigError for an unknown name."""
    if name not in SUITES:
        hint = did_you_mean(name, SUITES) or "there is none of that name."
        raise ConfigError(f"unknown suite {name!r}: {hint} The suites are {', '.join(SUITES)}")
    return [dataset(irds_id, title, home) for title, irds_id in SUITES[name].items()]


def dataset(
    irds_id: str,
    name: str = "",
    home: str | None = None,
    identical_ids: IdenticalIds | None = None,
) -> IrdsSpec:
    """A data set of ir_datasets; identical ids are treated as its community does by default."""
    if identical_ids is None:
        identical_ids = "drop" if irds_id.startswith(QUERIES_ARE_DOCUMENTS) else "keep"
    return IrdsSpec(name=name or irds_id, id=irds_id, home=home, identical_ids=identical_ids)


def averaged_as(collection: str) -> str:
    """The name under which a collection, given by name or id, enters its suite's mean.

    BEIR counts the twelve parts of CQADupStack as one data set, their mean; every other collection
    counts by itself.
    """
    part = collection.startswith(("cqadupstack-", "beir/cqadupstack/"))
    return "cqadupstack" if part else collection


def size(dataset: str) -> Size | None:
    """The size of an ir_datasets id; None if it is not known."""
    return _longest_prefix(SIZES, dataset)


def licence(dataset: str) -> str:
    """A note on the licence of a data set's texts."""
    family = dataset.partition("/")[0]
    return _longest_prefix(LICENCES, dataset) or f"see https://ir-datasets.com/{family}.html"


def _longest_prefix(table: Mapping[str, Value], dataset: str) -> Value | None:
    parts = dataset.split("/")
    prefixes = ("/".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((table[prefix] for prefix in prefixes if prefix in table), None)
