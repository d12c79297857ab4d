"""Named suites of test collections, each a list of ir_datasets ids."""

from xsweep.errors import ConfigError, did_you_mean
from xsweep.evaluator.specs import IrdsSpec

_CQADUPSTACK = [
    "android",
    "english",
    "gaming",
    "gis",
    "mathematica",
    "physics",
    "programmers",
    "stats",
    "tex",
    "unix",
    "webmasters",
    "wordpress",
]


_BEIR_13 = {
    "arguana": "beir/arguana",
    "climate-fever": "beir/climate-fever",
    "dbpedia-entity": "beir/dbpedia-entity/test",
    "fever": "beir/fever/test",
    "fiqa": "beir/fiqa/test",
    "hotpotqa": "beir/hotpotqa/test",
    "nfcorpus": "beir/nfcorpus/test",
    "nq": "beir/nq",
    "quora": "beir/quora/test",
    "scidocs": "beir/scidocs",
    "scifact": "beir/scifact/test",
    "trec-covid": "beir/trec-covid",
    "webis-touche2020": "beir/webis-touche2020/v2",
}


_NANO = [
    "arguana",
    "climate-fever",
    "dbpedia-entity",
    "fever",
    "fiqa",
    "hotpotqa",
    "msmarco",
    "nfcorpus",
    "nq",
    "quora",
    "scidocs",
    "scifact",
    "webis-touche2020",
]


_LOTTE = ["writing", "recreation", "science", "technology", "lifestyle"]


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


def suite(name: str, home: str | None = None) -> list[IrdsSpec]:
    """The collections of a suite. Raises ConfigError for an unknown name."""
    if name not in SUITES:
        hint = did_you_mean(name, SUITES) or "there is none of that name."
        raise ConfigError(f"unknown suite {name!r}: {hint} The suites are {', '.join(SUITES)}")
    return [IrdsSpec(name=title, id=irds_id, home=home) for title, irds_id in SUITES[name].items()]


def averaged_as(collection: str) -> str:
    """The name under which a collection, called by its name or id, enters its suite's mean.

    BEIR counts the twelve parts of CQADupStack as one data set, their mean; every other collection
    stands for itself.
    """
    part = collection.startswith(("cqadupstack-", "beir/cqadupstack/"))
    return "cqadupstack" if part else collection
