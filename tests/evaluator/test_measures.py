import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ir_measures
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xsweep.evaluator.data import load_collection
from xsweep.evaluator.data.trec import read_qrels, read_run
from xsweep.evaluator.measures import evaluate_run, mean
from xsweep.evaluator.specs import IrdsSpec

MEASURES = [
    "nDCG@10",
    "nDCG@3",
    "nDCG",
    "RR",
    "RR@2",
    "RR(rel=2)@10",
    "AP",
    "AP(rel=2)",
    "AP@3",
    "P@1",
    "P@5",
    "P(rel=2)@3",
    "R@2",
    "R(rel=2)@5",
    "R@1000",
    "Success@1",
    "Success(rel=2)@5",
]

DOCS = st.sampled_from([f"d{number}" for number in range(12)] + ["é", "D1", "d10x"])
QUERIES = st.sampled_from(["q1", "q2", "q3", "q4", "Q"])
SCORES = st.one_of(
    st.integers(-3, 3).map(float),
    st.floats(-1e6, 1e6, allow_nan=False),
    st.sampled_from([1.0, 1.0 + 1e-9, 1.0 + 1e-7]),
)
QRELS = st.dictionaries(QUERIES, st.dictionaries(DOCS, st.integers(-2, 4), min_size=1), min_size=1)
RUNS = st.dictionaries(QUERIES, st.dictionaries(DOCS, SCORES, min_size=1))


def _reference(qrels: dict, run: dict) -> dict[str, dict[str, float]]:
    """trec_eval's values by ir_measures; a query without results counts 0."""
    # ir_measures sends RR@k to a package that breaks ties by its own rule: trec_eval's
    # reciprocal rank, which has no cutoff, is cut here.
    uncut = {name: name.split("@")[0] if name.startswith("RR") else name for name in MEASURES}
    measures = {name: ir_measures.parse_measure(name) for name in set(uncut.values())}
    values = {str(measure): dict.fromkeys(qrels, 0.0) for measure in measures.values()}
    # pytrec_eval reads outside its arrays where a grade is negative; trec_eval's measures take
    # such grades for not relevant.
    grades = {
        query: {doc: max(grade, 0) for doc, grade in docs.items()} for query, docs in qrels.items()
    }
    for each in ir_measures.pytrec_eval.iter_calc(list(measures.values()), grades, run):
        values[str(each.measure)][each.query_id] = each.value
    cut = {name: 1 / int(name.split("@")[1]) for name in MEASURES if name != uncut[name]}
    return {
        name: {
            query: value if value >= cut.get(name, 0) else 0.0
            for query, value in values[whole].items()
        }
        for name, whole in uncut.items()
    }


def _assert_equal_to_trec_eval(qrels: dict, run: dict) -> None:
    ours, expected = evaluate_run(qrels, run, MEASURES), _reference(qrels, run)
    for name in MEASURES:
        assert ours[name] == pytest.approx(expected[name], abs=1e-9), name


@given(qrels=QRELS, run=RUNS)
@settings(max_examples=150, deadline=None)
def test_every_measure_equals_trec_evals(qrels: dict, run: dict) -> None:
    _assert_equal_to_trec_eval(qrels, run)


def test_hand_computed_values() -> None:
    qrels = {"q": {"a": 2, "b": 1, "c": 0}, "lost": {"x": 1}}
    values = evaluate_run(qrels, {"q": {"c": 3.0, "a": 2.0, "z": 1.0}}, ["nDCG@10", "RR@10", "AP"])
    # DCG 2/log2(3); the ideal 2/log2(2) + 1/log2(3).
    assert values["nDCG@10"]["q"] == pytest.approx(1.261859507 / 2.630929754)
    assert values["RR@10"] == {"q": 0.5, "lost": 0.0}
    assert values["AP"]["q"] == 0.25
    assert mean(values["RR@10"]) == 0.25


def test_tied_documents_rank_by_id_descending_whatever_order_they_came_in() -> None:
    qrels = {"q": {"d3": 1}}
    for docs in (["d1", "d2", "d3"], ["d3", "d2", "d1"]):
        assert evaluate_run(qrels, {"q": dict.fromkeys(docs, 1.0)}, ["RR"])["RR"] == {"q": 1.0}


def test_no_qrels_give_no_values() -> None:
    assert evaluate_run({}, {"q": {"d": 1.0}}, ["RR"]) == {"RR": {}}
    assert mean({}) == 0.0


KNOWN_NDCG10 = {
    ("runs/bm25.dl19", "score"): 0.5058,
    ("runs/bm25.dl20", "score"): 0.4803,
    ("runs/bm25.dl20", "rank"): 0.4796,
    ("llm_permutations/rankvicuna-7b.bm25.dl19", "score"): 0.6682,
    ("llm_permutations/rankvicuna-7b.bm25.dl20", "score"): 0.6549,
    ("runs/repllama.dl19", "rank"): 0.7439,
    ("runs/repllama.dl19", "score"): 0.7384,
}


def test_published_figures_on_trec_dl_come_out_to_four_digits(real_data: Path) -> None:
    for (name, order), expected in KNOWN_NDCG10.items():
        folder = real_data / "trec-dl-passage"
        qrels = read_qrels(folder / f"qrels.{name[-4:]}.txt")
        run = read_run(folder / f"{name}.run.gz", order=order)
        value = mean(evaluate_run(qrels, run, ["nDCG@10"])["nDCG@10"])
        assert round(value, 4) == expected, (name, order)


def _real_runs(data: Path) -> Iterator[tuple[dict, dict]]:
    """Qrels and run of every run in the folder of real data; graded and negative grades, ties."""
    for year in ("dl19", "dl20"):
        qrels = read_qrels(data / "trec-dl-passage" / f"qrels.{year}.txt")
        for path in sorted((data / "trec-dl-passage").glob(f"*/*.{year}.run.gz")):
            for order in ("score", "rank"):
                yield qrels, read_run(path, order)
    home = str(data / "ir_datasets_home")
    names = {"scifact.test": "beir/scifact/test", "cranfield": "cranfield", "vaswani": "vaswani"}
    for name, dataset in names.items():
        collection = load_collection(IrdsSpec(name=name, id=dataset, home=home))
        yield collection.qrels, read_run(data / "first-stage-bm25" / f"{name}.run.gz")
    folder = data / "nfcorpus-preprocessed"
    for split in ("train", "dev", "test"):
        qrels = read_qrels(folder / "qrels" / f"{split}.tsv.gz")
        yield qrels, read_run(folder / "bm25" / f"{split}.run.gz")
    yield (
        read_qrels(data / "noveleval" / "qrels.txt"),
        read_run(data / "noveleval" / "candidates.run.gz"),
    )


@pytest.mark.slow(6)
def test_real_runs_equal_trec_eval_on_every_query(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XSWEEP_HOME", str(tmp_path))
    values = 0
    for qrels, run in _real_runs(real_data):
        _assert_equal_to_trec_eval(qrels, run)
        values += len(qrels) * len(MEASURES)
    assert values > 100_000


ALONE = """
import sys
import torch
from xsweep.evaluator.measures import evaluate_run

torch.set_num_threads(1)
evaluate_run({"q": {"a": 1}}, {"q": {"a": 1.0}}, ["nDCG@10"])
print(torch.get_num_threads(), sorted({"pandas", "seaborn", "matplotlib"} & set(sys.modules)))
"""


@pytest.mark.slow(4)
def test_measuring_leaves_torch_its_threads_and_loads_no_pandas():
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True)
    assert done.stdout == "1 []\n"
