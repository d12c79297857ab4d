"""Results as Parquet, for pandas, polars and DuckDB."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from db.results import Cell

LABELS = ("system", "backbone", "group", "objective", "teacher", "seed", "collection")


def write_parquet(folder: Path, cells: "Sequence[Cell]", tidy_csv: str) -> None:
    """Write `results.parquet`, the lines of results.csv, and `per_query.parquet`.

    The latter has a row per evaluation, measure and query: the evaluation's identity and labels,
    `measure`, `query_id` and `score` (float64).
    """
    import pandas as pd

    results = pd.read_csv(
        io.StringIO(tidy_csv),
        float_precision="round_trip",
        keep_default_na=False,  # a system may be called NA
        na_values=[""],
    )
    results.to_parquet(folder / "results.parquet", index=False)
    scores = [
        pd.DataFrame(
            {"identity": cell.identity}
            | {label: cell.labels.get(label) for label in LABELS}
            | {"measure": measure, "query_id": cell.query_ids, "score": scores_Q}
        )
        for cell in cells
        for measure, scores_Q in cell.scores.items()
    ]
    pd.concat(scores).to_parquet(folder / "per_query.parquet", compression="zstd", index=False)
