"""Results as Parquet, for pandas, polars and DuckDB; written where pyarrow is installed."""

import csv
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from db.results import Cell

LABELS = ("system", "backbone", "group", "objective", "teacher", "seed", "collection")


def is_available() -> bool:
    """Whether there is what writes Parquet; it comes with Ray, and small installations lack it."""
    return importlib.util.find_spec("pyarrow") is not None


def write_parquet(folder: Path, cells: "Sequence[Cell]", tidy_csv: str) -> None:
    """Writes `results.parquet`, the lines of results.csv, and `per_query.parquet`.

    The latter has a row per evaluation, measure and query: the evaluation's identity and labels,
    `measure`, `query_id` and `score` (float64).
    """
    import pyarrow
    from pyarrow import parquet

    lines = list(csv.DictReader(io.StringIO(tidy_csv)))
    columns = {name: [_typed(line[name]) for line in lines] for name in (lines[0] if lines else ())}
    parquet.write_table(pyarrow.table(columns), folder / "results.parquet")
    rows: dict[str, list[Any]] = {
        name: [] for name in ("identity", *LABELS, "measure", "query_id", "score")
    }
    for cell in cells:
        for measure, scores in cell.scores.items():
            count = len(cell.query_ids)
            rows["identity"] += [cell.identity] * count
            for label in LABELS:
                rows[label] += [cell.labels.get(label)] * count
            rows["measure"] += [measure] * count
            rows["query_id"] += cell.query_ids
            rows["score"] += scores.tolist()
    parquet.write_table(pyarrow.table(rows), folder / "per_query.parquet", compression="zstd")


def _typed(text: str) -> float | str | None:
    """A field of the CSV: a number where it is one, null where it is empty."""
    if text == "":
        return None
    try:
        return float(text)
    except ValueError:
        return text
