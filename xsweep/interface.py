"""Python interface: a sweep's results as data frames, its report, its models; submission, status.

    import xsweep
    xsweep.results("quickstart").pivot_table("value", ["backbone", "objective"], "collection")

Every function takes the settings of the command line by keyword, `database` and `store`, and has
its defaults: the environment, then `.xsweep/` in the working folder. `sweep` is a name, by default
that of the newest sweep. Only `submit` starts anything.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from xsweep.db.engine import connect
from xsweep.db.explain import finished_folder, only_sweep
from xsweep.db.results import Cell, load_cells
from xsweep.db.status import summary
from xsweep.errors import ConfigError
from xsweep.orchestrator.report.table import row_of
from xsweep.orchestrator.settings import load_settings
from xsweep.orchestrator.storage.store import store_at

if TYPE_CHECKING:
    import pandas as pd

    from xsweep.db.jobs import Submission
    from xsweep.orchestrator.report.report import Report

LABELS = ("system", "backbone", "objective", "teacher", "seed", "collection")


def results(sweep: str | None = None, **settings: Any) -> "pd.DataFrame":
    """Accepted results, a row per run, collection and measure.

    The columns are `name` (the row of the report), `system` (`run`, `teacher` or `first_stage`),
    `backbone`, `objective`, `teacher`, `seed`, `collection`, `measure`, `value` (mean over
    queries), `queries`, `job_id`, and the settings of the training such as `lr` and `steps`.
    """
    import pandas as pd

    rows = [
        {
            **_labels(cell),
            "measure": measure,
            "value": value,
            "queries": len(cell.query_ids),
            "job_id": cell.job_id,
            **_optimisation(cell),
        }
        for cell in _cells(sweep, settings)
        for measure, value in cell.means.items()
    ]
    return pd.DataFrame(rows).astype({"seed": "Int64"} if rows else {})


def per_query(
    sweep: str | None = None, measure: str | None = None, **settings: Any
) -> "pd.DataFrame":
    """Values of each query, a row per run, collection, measure and query.

    `measure` limits them to one, such as `nDCG@10`.
    """
    import pandas as pd

    wanted = None if measure is None else [_canonical(measure)]
    frames = [
        pd.DataFrame(
            {**_labels(cell), "measure": name, "query_id": cell.query_ids, "value": values_Q}
        )
        for cell in _cells(sweep, settings, wanted)
        for name, values_Q in cell.scores.items()
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def run(job: int | str, **settings: Any) -> "pd.DataFrame":
    """Ranking of one evaluation: `query_id`, `doc_id`, `rank` from 1, `score`.

    `job` is an evaluation's id, as in `results`, or its name. Raises ConfigError for another job.
    """
    import pandas as pd

    from xsweep.evaluator.data.trec import read_run, sort_docs

    path = _folder(job, "evaluate", settings) / "run.trec.gz"
    return pd.DataFrame(
        [
            (query_id, doc_id, rank, score)
            for query_id, scores in read_run(path).items()
            for rank, (doc_id, score) in enumerate(sort_docs(scores), start=1)
        ],
        columns=["query_id", "doc_id", "rank", "score"],
    )


def curves(sweep: str | None = None, **settings: Any) -> "pd.DataFrame":
    """Curves of the finished trainings, a row per training, figure and step.

    `figure` is `loss`, `validation`, `lr` or another key of the training's `metrics.jsonl`.
    """
    import pandas as pd

    store = store_at(load_settings(**settings).store)
    frames = []
    for cell in _cells(sweep, settings, kind="train"):
        if cell.folder:
            path = store.fetch_file(f"{cell.folder}/metrics.jsonl")
            read = pd.read_json(path, lines=True, precise_float=True)
            tidy = read.melt(id_vars="step", var_name="figure").dropna(subset="value")
            frames.append(tidy.assign(**_labels(cell), job_id=cell.job_id))
    columns = ["name", *LABELS[1:-1], "job_id", "figure", "step", "value"]
    return pd.concat(frames or [pd.DataFrame(columns=columns)], ignore_index=True)[columns]


@dataclass(frozen=True, repr=False)
class SweepReport:
    """A report that notebooks show as the page of `xsweep report --format html`."""

    report: "Report"

    def render(self, format: str, **layout: Any) -> str:
        """Text in a format of `xsweep report`; `layout` are fields of `Layout`."""
        from xsweep.orchestrator.report import PLAIN, render

        return render(self.report, format, replace(PLAIN, **layout))

    def to_latex(self, **layout: Any) -> str:
        """LaTeX for a paper, such as `to_latex(standalone=True)`."""
        return self.render("latex", **layout)

    def to_markdown(self) -> str:
        """A Markdown table with its caption."""
        return self.render("markdown")

    def __repr__(self) -> str:
        return self.render("text")

    def _repr_html_(self) -> str:
        page = escape(self.render("html"))  # in a frame: its styles are not the notebook's
        return f'<iframe srcdoc="{page}" style="width:100%;height:40em;border:0"></iframe>'


def report(*sweeps: str, **options: Any) -> SweepReport:
    """Report of a sweep, or of several in one table.

    `options` are fields of `ReportOptions`, such as `effects=True`, and `database`.
    """
    from xsweep.orchestrator.report import ReportOptions, load_report

    engine = _engine({"database": options.pop("database", None)})
    names = sweeps or (only_sweep(engine, None),)
    return SweepReport(load_report(engine, names, ReportOptions(**options)))


def compare(
    a: str,
    b: str,
    sweep: str | None = None,
    measures: Sequence[str] = ("nDCG@10",),
    **settings: Any,
) -> "pd.DataFrame":
    """Compare the report's rows `a` and `b`, with a row per measure and collection.

    Columns: `a` and `b` (means), `difference`, `low` and `high` (its 95% interval over queries),
    `effect` (Cohen's d), `p` and `p_corrected` (paired t-test, Holm), `wins`, `losses`. Raises
    ConfigError for a name that is no row, or if the rows have no collection in common.
    """
    import pandas as pd

    from xsweep.orchestrator.report.compare import compare_systems

    names = [_canonical(measure) for measure in measures]
    _, _, found = compare_systems(_cells(sweep, settings, names), a, b, measures=names)
    return pd.DataFrame(
        {
            **{"measure": each.measure, "collection": each.collection, "a": each.a, "b": each.b},
            **{"difference": each.a - each.b, "low": each.interval[0], "high": each.interval[1]},
            **{"effect": each.effect, "p": each.p, "p_corrected": each.p_corrected},
            **{"wins": each.wins, "losses": each.losses},
        }
        for each in found
    )


def status(sweep: str | None = None, **settings: Any) -> "pd.DataFrame":
    """Number of jobs by sweep, kind and state."""
    import pandas as pd

    found = summary(_engine(settings), sweep, failures=0)
    return pd.DataFrame(
        [
            (each.name, kind, state, count)
            for each in found.sweeps
            for kind, states in each.counts.items()
            for state, count in states.items()
        ],
        columns=["sweep", "kind", "state", "jobs"],
    )


def submit(
    grid: str | Path,
    changes: Iterable[str] = (),
    *,
    start: bool = True,
    replace: bool = False,
    **settings: Any,
) -> "Submission":
    """Store the jobs of a grid, a file or the name of a shipped one, and start a controller.

    `changes` are as for `--set`: `["training.lr=2e-5"]`. Raises ConfigError for a mistake in the
    grid, DataError for a missing file.
    """
    from xsweep.orchestrator.grid.load import find_grid
    from xsweep.orchestrator.plan import plan_grid, store_plan
    from xsweep.orchestrator.runtime import process

    where = load_settings(**settings)
    planned = plan_grid(find_grid(Path(grid)), where, changes)
    submission = store_plan(where.database, planned, replace)
    if start and submission.done < submission.total:
        process.start_detached(where)
    return submission


def load_model(job: int | str, library: str = "transformers", **settings: Any) -> Any:
    """Model of a training by id or by name, such as `MiniLM-L6 infonce bm25_lists s1`.

    Returns a transformers model for sequence classification, or, with the library
    `sentence-transformers`, its CrossEncoder. Raises ConfigError for a job that is no finished
    training, or another library.
    """
    folder = str(_folder(job, "train", settings) / "model")
    if library == "transformers":
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification.from_pretrained(folder).eval()
    if library == "sentence-transformers":
        from sentence_transformers import CrossEncoder

        return CrossEncoder(folder)
    raise ConfigError(f"library {library!r}: use one of transformers, sentence-transformers")


def _engine(settings: dict[str, Any]) -> Engine:
    return connect(load_settings(**settings).database, read_only=True)


def _cells(
    sweep: str | None,
    settings: dict[str, Any],
    measures: Sequence[str] | None = None,
    kind: str = "evaluate",
) -> list[Cell]:
    engine = _engine(settings)
    return load_cells(engine, only_sweep(engine, sweep), measures, kind)


def _folder(job: int | str, kind: str, settings: dict[str, Any]) -> Path:
    folder = finished_folder(_engine(settings), kind, job)
    return store_at(load_settings(**settings).store).fetch(folder)


def _canonical(measure: str) -> str:
    from xsweep.evaluator.measure_names import parse_measure

    return str(parse_measure(measure))


def _labels(cell: Cell) -> dict[str, Any]:
    labels = {"system": "run", **cell.labels}
    return {
        "name": row_of(labels).name,
        **{key: labels.get(key) for key in LABELS if key in labels},
    }


def _optimisation(cell: Cell) -> dict[str, Any]:
    """Settings of the training that are numbers or words."""
    training = cell.parents_summary.get("run")
    spec = training.provenance.get("spec", {}) if training else {}
    return {
        name: value
        for name, value in spec.get("optimisation", {}).items()
        if isinstance(value, int | float | str)
    }
