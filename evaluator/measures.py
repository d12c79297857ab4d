"""Measures of a run, per query, equal to trec_eval's; computed by ranx.

ranx keeps the given order of tied documents and needs every query in the run. So runs are ranked
here by trec_eval's rule (scores as float32, ties by document id descending) and passed as arrays of
document numbers, padded with unjudged documents: equal to ir_measures' pytrec_eval to 1e-9. Arrays
also avoid ranx's own dictionaries, which take 17 s to compile once.
"""

import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from typing import Any

import numpy as np

from xsweep.evaluator.data.trec import sort_docs
from xsweep.evaluator.measure_names import parse_measure

RANX_NAMES = {
    "nDCG": "ndcg",
    "RR": "mrr",
    "AP": "map",
    "P": "precision",
    "R": "recall",
    "Success": "hit_rate",
}
_JUDGED_PADDING, _RUN_PADDING, _NEVER_RELEVANT = -2, -1, -(2**31)


def evaluate_run(
    qrels: Mapping[str, Mapping[str, int]],
    run: Mapping[str, Mapping[str, float]],
    measures: Sequence[str],
) -> dict[str, dict[str, float]]:
    """{measure: {query: value}} for every query of the qrels; one without results has 0.

    Queries of the run without qrels are ignored. Grades below 1 are not relevant.
    """
    wanted = [parse_measure(name) for name in measures]
    if not qrels:
        return {str(measure): {} for measure in wanted}
    judged_QJ2, ranked_QD2 = _as_arrays(qrels, run)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="unsafe cast")
        from numba import set_num_threads

        metric_switch = _ranx_metrics().metric_switch
        # The work is small, and its threads would compete with torch's for the cores.
        set_num_threads(1)
        values = [
            metric_switch(RANX_NAMES[measure.family])(
                judged_QJ2, ranked_QD2, measure.cutoff or 0, measure.relevant_grade
            )
            for measure in wanted
        ]
    return {
        str(measure): dict(zip(qrels, values_Q.tolist(), strict=True))
        for measure, values_Q in zip(wanted, values, strict=True)
    }


@cache
def _ranx_metrics() -> Any:
    """`ranx.metrics` alone: the package itself imports pandas and seaborn for 1.4 s."""
    import numba

    # As in ranx itself: numba's OpenMP layer would set the number of torch's threads, too.
    setattr(numba.config, "THREADING_LAYER", "workqueue")  # noqa: B010
    if "ranx" in sys.modules:
        return import_module("ranx.metrics")
    spec = find_spec("ranx")
    assert spec
    sys.modules["ranx"] = module_from_spec(spec)
    try:
        return import_module("ranx.metrics")
    finally:
        del sys.modules["ranx"]


def mean(values: Mapping[str, float]) -> float:
    """The mean over queries; 0 if there are none."""
    return float(np.mean(list(values.values()))) if values else 0.0


def _as_arrays(
    qrels: Mapping[str, Mapping[str, int]], run: Mapping[str, Mapping[str, float]]
) -> tuple[np.ndarray, np.ndarray]:
    """int64[queries, judged, 2] of (document number, grade), best grade first, and
    int64[queries, documents, 2] of (document number, 0), best first."""
    results = [run.get(query_id, {}) for query_id in qrels]
    depth = max(1, *(len(scores) for scores in results)) if results else 1
    most_judged = max(1, *(len(grades) for grades in qrels.values()))
    judged = np.full((len(qrels), most_judged, 2), _JUDGED_PADDING, dtype=np.int64)
    judged[:, :, 1] = _NEVER_RELEVANT
    ranked = np.full((len(qrels), depth, 2), _RUN_PADDING, dtype=np.int64)
    for row, (grades, scores) in enumerate(zip(qrels.values(), results, strict=True)):
        best_first = sorted(grades.items(), key=lambda item: -item[1])
        numbers = {doc_id: number for number, (doc_id, _) in enumerate(best_first)}
        for place, (_, grade) in enumerate(best_first):
            judged[row, place] = place, grade
        for place, (doc_id, _) in enumerate(_trec_eval_order(scores)):
            ranked[row, place, 0] = numbers.get(doc_id, _RUN_PADDING)
    return judged, ranked


def _trec_eval_order(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    rounded = np.fromiter(scores.values(), np.float32, len(scores)).tolist()
    return sort_docs(dict(zip(scores, rounded, strict=True)))
