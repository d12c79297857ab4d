"""Difference of the BM25 of `xsweep.evaluator.first_stage` from Anserini's, by setting.

    python benchmarks/first_stage.py DATA

DATA is a folder with `ir_datasets_home/`, `first-stage-bm25/` and `trec-dl-passage/`. On SciFact
the whole collection is searched and compared with the figures that Anserini publishes for its
"flat" index (title and text in one field, as here). On TREC-DL only the passages of some runs are
there: our BM25, with the statistics of those 33,061 passages instead of 8.8 million, orders the 100
passages that Anserini's run holds of each query, which shows what the analysis of the text does,
not the search. Cranfield and Vaswani have no figures of Anserini's; the given runs have the default
settings and must come out the same.
"""

import argparse
import time
from pathlib import Path

from scipy.stats import kendalltau

from xsweep.evaluator.data import load_collection
from xsweep.evaluator.data.readers import read_texts
from xsweep.evaluator.data.trec import (
    Qrels,
    Run,
    read_qrels,
    read_run,
    scores_from_order,
    sort_docs,
)
from xsweep.evaluator.first_stage import search
from xsweep.evaluator.measures import evaluate_run, mean
from xsweep.evaluator.specs import Bm25Spec, IrdsSpec

MEASURES = ["nDCG@10", "R@100", "AP"]
ANSERINI = {
    "scifact.test": {"nDCG@10": 0.6789, "R@100": 0.9253},
    "dl19": {"nDCG@10": 0.5058},
    "dl20": {"nDCG@10": 0.4796},
}
"""Published: github.com/castorini/anserini, regressions of beir-v1.0.0-scifact.flat and of
dl19-passage and dl20-passage, default BM25."""
WHOLE = {
    "scifact.test": "beir/scifact/test",
    "cranfield": "cranfield",
    "vaswani": "vaswani",
}
SETTINGS = {
    "k1 0.9, b 0.4, stems": Bm25Spec(),
    "k1 0.9, b 0.4, lucene": Bm25Spec(analyzer="lucene"),
    "k1 0.9, b 0.4, no stems": Bm25Spec(stemmer=None),
    "k1 1.2, b 0.75, stems": Bm25Spec(k1=1.2, b=0.75),
}


def main() -> None:
    """Prints a table of whole collections and one of TREC-DL's pools."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    print(f"{'':16}{'':26}" + "".join(f"{name:>9}" for name in MEASURES) + f"{'s':>7}")
    for name, dataset in WHOLE.items():
        compare_whole(data, name, dataset)
    print(f"\n{'':16}{'':26}{'nDCG@10':>9}{'tau':>9}{'top 10':>9}")
    documents = list(read_texts(data / "trec-dl-passage" / "passages.tsv.gz"))
    for year in ("dl19", "dl20"):
        compare_pools(data / "trec-dl-passage", year, documents)


def compare_whole(data: Path, name: str, dataset: str) -> None:
    """Each of our settings on a whole collection, the given run, and the published figures."""
    spec = IrdsSpec(name=name, id=dataset, home=str(data / "ir_datasets_home"))
    collection = load_collection(spec)
    documents = list(collection.documents())
    for label, settings in SETTINGS.items():
        started = time.process_time()
        run = search(documents, collection.queries, settings, depth=100)
        show(name, label, measured(collection.qrels, run), time.process_time() - started)
    given = read_run(data / "first-stage-bm25" / f"{name}.run.gz")
    show(name, "given run", measured(collection.qrels, given))
    if name in ANSERINI:
        show(name, "Anserini, published", ANSERINI[name])


def compare_pools(folder: Path, year: str, documents: list[tuple[str, str]]) -> None:
    """Our order of the passages that Anserini's BM25 found."""
    queries = dict(read_texts(folder / f"queries.{year}.tsv"))
    qrels = read_qrels(folder / f"qrels.{year}.txt")
    theirs = read_run(folder / "runs" / f"bm25.{year}.run.gz", order="rank")
    print(f"{year:16}{'Anserini, its run':26}{measured(qrels, theirs)['nDCG@10']:9.4f}")
    for label, settings in SETTINGS.items():
        found = search(documents, queries, settings, depth=len(documents))
        ours: Run = {
            query: scores_from_order(
                sort_docs({doc: found.get(query, {}).get(doc, 0.0) for doc in docs})
            )
            for query, docs in theirs.items()
        }
        taus = {
            query: float(kendalltau(list(docs.values()), [ours[query][d] for d in docs]).statistic)
            for query, docs in theirs.items()
        }
        shared = {
            query: len(set(list(docs)[:10]) & set(list(ours[query])[:10])) / 10
            for query, docs in theirs.items()
        }
        value = measured(qrels, ours)["nDCG@10"]
        print(f"{year:16}{label:26}{value:9.4f}{mean(taus):9.3f}{mean(shared):9.0%}")


def measured(qrels: Qrels, run: Run) -> dict[str, float]:
    """The means of all measures."""
    return {name: mean(values) for name, values in evaluate_run(qrels, run, MEASURES).items()}


def show(name: str, label: str, values: dict[str, float], cpu_s: float | None = None) -> None:
    """One line; measures that are not known stay empty."""
    shown = "".join(f"{values[key]:9.4f}" if key in values else f"{'':9}" for key in MEASURES)
    print(f"{name:16}{label:26}{shown}" + (f"{cpu_s:7.1f}" if cpu_s is not None else ""))


if __name__ == "__main__":
    main()
