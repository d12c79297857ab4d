"""Evaluations made by hand, in the form in which the database returns them."""

from collections.abc import Callable, Sequence
from hashlib import sha256
from statistics import fmean

import numpy as np
import pytest

from xsweep.db.results import Cell, ParentResult

MakeCell = Callable[..., Cell]


@pytest.fixture(scope="session")
def make_cell() -> MakeCell:
    """Makes one evaluation with the job id `place` and one list of scores per measure."""

    def make(
        place: int,
        *,
        system: str = "run",
        backbone: str = "L6",
        objective: str = "infonce",
        teacher: str = "lists",
        seed: int = 1,
        collection: str = "news",
        state: str = "done",
        failure: str | None = None,
        query_ids: Sequence[str] = (),
        empty: int = 0,
        **scores: Sequence[float],
    ) -> Cell:
        by_measure = {name.replace("_at_", "@"): np.array(s) for name, s in scores.items()}
        if state != "done":
            by_measure = {}
        labels = {"system": system, "collection": collection, "first_stage": "BM25", "depth": 20}
        if system == "run":
            labels |= {"backbone": backbone, "objective": objective, "seed": seed}
        if system != "first_stage":
            labels |= {"teacher": teacher}
        name = " ".join(map(str, ["evaluate", *labels.values()]))
        queries = max(map(len, by_measure.values()), default=0)
        validation = {"measure": "nDCG@10", "collection": {"name": "held-out"}}
        run = {"run": ParentResult("1" * 64, {}, {"spec": {"validation": validation}})}
        first_stage = {"first_stage": {"type": "bm25", "k1": 0.9, "b": 0.4}}
        return Cell(
            job_id=place,
            identity=sha256(f"{name} {place}".encode()).hexdigest(),
            name=name,
            labels=labels,
            state=state,
            failure=failure,
            reason=None,
            means={measure: fmean(values) for measure, values in by_measure.items()},
            scores=by_measure,
            query_ids=tuple(query_ids or (f"q{i}" for i in range(queries))),
            summary={"queries_without_results": empty},
            provenance={},
            parents_summary={"candidates": ParentResult("0" * 64, {}, {"spec": first_stage})}
            | (run if system == "run" else {}),
        )

    return make


@pytest.fixture(scope="session")
def small_sweep(make_cell: MakeCell) -> list[Cell]:
    """Two backbones, three objectives, two seeds, 60 queries; three unfinished runs."""
    generator = np.random.default_rng(7)
    difficulty = generator.uniform(0, 0.6, 60)
    cells = []

    def add(quality: float, **labels: object) -> None:
        scores = {
            measure: np.clip(difficulty + generator.normal(quality, 0.12, 60), 0, 1)
            for measure in ("nDCG_at_10", "RR_at_10")
        }
        cells.append(make_cell(len(cells), empty=3, **labels, **scores))

    add(0.20, system="first_stage")
    add(0.22, system="teacher", teacher="minilm")
    for backbone, better in (("L6", 0.0), ("L3", -0.1)):
        for objective, teacher, gain in (
            ("bce", "pairs", 0.08),
            ("infonce", "lists", 0.30),
            ("adr_mse", "rankings", 0.32),
        ):
            for seed in (1, 2):
                state = {
                    ("L6", "adr_mse", 2): ("failed", "NAN"),
                    ("L3", "adr_mse", 1): ("running", None),
                    ("L3", "adr_mse", 2): ("waiting", None),
                }.get((backbone, objective, seed), ("done", None))
                add(
                    0.0 + better + gain,
                    backbone=backbone,
                    objective=objective,
                    teacher=teacher,
                    seed=seed,
                    state=state[0],
                    failure=state[1],
                )
    return cells
