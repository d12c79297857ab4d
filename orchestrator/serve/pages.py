"""The pages of `xsweep serve`: sweeps, heat maps, curves, queries, jobs and logs.

They show the database and the store, and change neither. All is in tables and links; a browser with
scripts draws charts beside them and renews what changes.
"""

import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache, partial
from http import HTTPStatus
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from pydantic import TypeAdapter
from sqlalchemy import Engine

from xsweep.db import events, jobs, status
from xsweep.db.explain import AttemptRow
from xsweep.db.results import Cell, load_cells, load_trainings
from xsweep.db.schema import OPEN
from xsweep.db.status import JobGroup
from xsweep.errors import ConfigError, XsweepError
from xsweep.evaluator.data.trec import read_qrels, run_lines, sort_docs
from xsweep.evaluator.specs import CollectionSpec, IrdsSpec
from xsweep.orchestrator.forecast.eta import count, progress_text
from xsweep.orchestrator.formatting import duration
from xsweep.orchestrator.monitoring.metrics import PROMETHEUS, as_text
from xsweep.orchestrator.report.compare import Differences, differences, query_texts, summarize
from xsweep.orchestrator.report.table import Row, build_table, row_of
from xsweep.orchestrator.serve import JSON, TEXT, Answer, Request
from xsweep.orchestrator.serve.charts import (
    FIGURES,
    MARKS,
    choose_sides,
    heat_map,
    jobs_of,
    line_figure,
    of_runs,
    one_of,
    query_figure,
    read_curves,
    seeds_of,
)
from xsweep.orchestrator.storage.store import Store

if TYPE_CHECKING:
    from jinja2 import Environment

    from xsweep.evaluator.data.collection import Collection as Texts

log = logging.getLogger(__name__)

READ_FILES = ("metrics.jsonl", "trials.json")
"""Files of an attempt's folder that the page of a job reads."""
MAX_ROWS, MAX_OTHERS, MAX_CURVES, MAX_CHOICES = 100, 200, 24, 30
"""Rows of a table, links below a heat map, overlaid curves, boxes of a label; the rest is counted.
"""
RANKED = 10
"""Documents of a ranking that are shown."""
TEXTS_S = 5.0
"""Time for reading documents of a collection that has no index."""
TAIL_BYTES, WHOLE_LOG_BYTES = 32_000, 5_000_000
LISTED_JOBS, LISTED_EVENTS = 1_000, 200
REFRESH_S = 15
REFRESH_TIMES = 100
"""A page that changes, and the data of its charts, are renewed every 15 s, but each at most for
1/100 of a core."""
REFRESH_MARK = "\0refresh\0"
"""Place in a page where the seconds until then are written."""
LABELS = ("backbone", "objective", "teacher", "seed")
"""Labels by which runs are chosen."""
PLOTLY = distribution("plotly")
SCRIPT, SCRIPT_TYPE = f"plotly-{PLOTLY.version}.js", "text/javascript; charset=utf-8"


@dataclass(frozen=True)
class Site:
    """Answers requests; `engine` should be read-only, and `store` may be missing."""

    engine: Engine
    store: Store
    database: str
    """The database's name on the pages."""

    def respond(self, request: Request) -> Answer:
        """The answer to a request; an error becomes a page with its message."""
        began_s = time.thread_time()
        answer = self._answer(request)
        after_s = max(REFRESH_S, REFRESH_TIMES * (time.thread_time() - began_s))
        return answer._replace(body=answer.body.replace(REFRESH_MARK, f"{after_s:.0f}"))

    def _answer(self, request: Request) -> Answer:
        try:
            match request.parts:
                case ():
                    return self._index()
                case ("style.css",):
                    return Answer(_render("style.css"), "text/css")
                case ("page.js",):
                    return Answer(_file(Path(__file__).with_name("page.js")), SCRIPT_TYPE)
                case (name,) if name == SCRIPT:
                    path = PLOTLY.locate_file("plotly/package_data/plotly.min.js")
                    return Answer(_file(Path(str(path))), SCRIPT_TYPE, lasting=True)
                case ("plotly-licence.txt",):
                    return Answer(PLOTLY.read_text("licenses/LICENSE.txt") or "", TEXT)
                case ("metrics",):
                    return Answer(as_text(self.engine), PROMETHEUS)
                case ("sweep", name):
                    return self._sweep(name, request)
                case ("sweep", name, "jobs"):
                    return self._jobs(name, request)
                case ("sweep", name, "curves" | "curves.json" as form):
                    return self._curves(name, request, form)
                case ("sweep", name, "queries" | "queries.json" | "query" as form):
                    return self._queries(name, request, form)
                case ("job", job):
                    return self._job(job, request.get("attempt"))
                case ("job", job, "curves.json"):
                    return self._job_curves(job, request.get("attempt"))
                case ("job", job, "log"):
                    return self._log(job, request.get("attempt"))
            return _message("There is no such page.", HTTPStatus.NOT_FOUND)
        except ConfigError as error:
            return _message(str(error), HTTPStatus.NOT_FOUND)
        except XsweepError as error:
            return _message(str(error), HTTPStatus.SERVICE_UNAVAILABLE)
        except Exception:
            # Details go to the user's own terminal only.
            log.exception("a page failed")
            message = "This page failed; the terminal of xsweep serve shows the error."
            return _message(message, HTTPStatus.INTERNAL_SERVER_ERROR)

    def _index(self) -> Answer:
        found = status.summary(self.engine)
        return _page(
            "index",
            refresh=any(count(sweep, OPEN) for sweep in found.sweeps),
            found=found,
            progress={sweep.id: progress_text(sweep, found) for sweep in found.sweeps},
            database=self.database,
            states=[
                state for state in MARKS if any(count(each, (state,)) for each in found.sweeps)
            ],
        )

    def _sweep(self, name: str, request: Request) -> Answer:
        found = status.summary(self.engine, name)
        [sweep] = found.sweeps
        running = {job.job_id: job.progress for job in found.running}
        whole = heat_map(status.groups(self.engine, sweep.id), request.get("measure"), running)
        labels = {
            row: dict(zip(LABELS, row[1:], strict=False)) if row.system == "run" else {}
            for row in whole.rows
        }
        states: dict[Row, set[str]] = defaultdict(set)
        for (row, _), tile in whole.tiles.items():
            states[row] |= tile.counts.keys()
        wanted = set(request.options.get("state", MARKS))
        rows = [
            row
            for row in whole.rows
            if states[row] & wanted and _is_chosen(request, labels[row], " ".join(row))
        ]
        columns = [
            column
            for column in whole.columns
            if column in request.options.get("collection", whole.columns)
        ]
        return _page(
            "sweep",
            refresh=bool(count(sweep, OPEN)),
            sweep=sweep,
            found=found,
            progress=progress_text(sweep, found),
            map=whole,
            rows=rows,
            columns=columns,
            choices_of=_choices(labels.values())
            | _short("collection", whole.columns)
            | _short("state", [state for state in MARKS if state in set().union(*states.values())]),
            first=_first(request),
            request=request,
            max_rows=MAX_ROWS,
            max_others=MAX_OTHERS,
            marks=MARKS,
        )

    def _jobs(self, name: str, request: Request) -> Answer:
        state, kind = request.get("state") or None, request.get("kind") or None
        [sweep] = status.summary(self.engine, name).sweeps
        rows = status.list_jobs(
            self.engine, sweep.id, limit=LISTED_JOBS, state=state, kind=kind, failed_first=True
        )
        return _page("jobs", sweep=sweep, rows=rows, limit=LISTED_JOBS, state=state, kind=kind)

    def _curves(self, name: str, request: Request, form: str) -> Answer:
        """Curves of one figure of the chosen trainings, overlaid."""
        [sweep] = status.summary(self.engine, name).sweeps
        trainings = [
            each for each in load_trainings(self.engine, sweep.id) if each.folder is not None
        ]
        chosen = [each for each in trainings if _is_chosen(request, each.labels, each.name)]
        figure = request.get("figure") if request.get("figure") in FIGURES else "loss"
        drawn = [
            (training, found[figure])
            for training in chosen[:MAX_CURVES]
            if figure in (found := read_curves(self._results(training.folder or "")))
        ]
        curves = of_runs(
            (training.name.removeprefix("train "), training.labels, curve)
            for training, curve in drawn
        )
        if form == "curves.json":
            return _figures([line_figure(FIGURES[figure], curves)] if curves else [])
        return _page(
            "curves",
            refresh=bool(count(sweep, OPEN)),
            sweep=sweep,
            figure=figure,
            figures=FIGURES,
            rows=list(zip((training for training, _ in drawn), curves, strict=True)),
            left_out=max(0, len(chosen) - MAX_CURVES),
            choices_of=_choices(each.labels for each in trainings),
            request=request,
        )

    def _queries(self, name: str, request: Request, form: str) -> Answer:
        """Two systems query by query: a page, its chart, or the page of one query."""
        [sweep] = status.summary(self.engine, name).sweeps
        scored = [
            group
            for group in status.groups(self.engine, sweep.id)
            if group.kind == "evaluate" and group.means
        ]
        if not scored:
            raise ConfigError(f"sweep {name!r} has no accepted evaluation yet")
        places = sorted({group.labels["collection"] for group in scored})
        place = one_of(places, request.get("collection"))
        systems: dict[Row, list[JobGroup]] = defaultdict(list)
        for group in scored:
            if group.labels["collection"] == place:
                systems[row_of(group.labels)].append(group)
        measures = heat_map(scored).measures
        measure = one_of(measures, request.get("measure"))
        a, b = choose_sides(systems, measure, request)
        cells = [
            load_cells(self.engine, sweep.id, [measure], job_ids=jobs_of(systems, side))
            for side in (a, b)
        ]
        found = self._differences(cells, measure)
        if form == "queries.json":
            return _figures([query_figure(a.name, b.name, found)])
        chosen = {"collection": place, "measure": measure, "a": a.system, "a_seed": a.seed}
        chosen |= {"b": b.system, "b_seed": b.seed}
        values: dict[str, Any] = {"sweep": sweep, "a": a, "b": b, "found": found, "chosen": chosen}
        if form == "query":
            return _page("query", **values, **self._rankings(cells, found, request.get("id")))
        return _page(
            "queries",
            **values,
            places=places,
            measures=measures,
            systems=sorted(row.name for row in systems),
            seeds=seeds_of(systems),
            summary=summarize(found, 3),
            rows=sorted(found.queries, key=lambda query: -abs(query.difference)),
            first=_first(request),
            max_rows=MAX_ROWS,
            request=request,
        )

    def _differences(self, cells: Sequence[Sequence[Cell]], measure: str) -> Differences:
        tables = [build_table(each, [measure]) for each in cells]
        (ours,), (theirs,) = (table.entries.values() for table in tables)
        query_ids = cells[0][0].query_ids
        if set(query_ids) != set(cells[1][0].query_ids):
            raise ConfigError("the two systems were evaluated on different queries")
        try:
            texts = query_texts(self.store, cells[0][0])
        except (OSError, XsweepError):
            texts = {}
        return differences(tables[0].columns[0], ours, theirs, query_ids, texts)

    def _rankings(
        self, cells: Sequence[Sequence[Cell]], found: Differences, query_id: str
    ) -> dict[str, Any]:
        """A query with the ranking of each system's first run, with texts and labels."""
        query = next((each for each in found.queries if each.query_id == query_id), None)
        if query is None:
            raise ConfigError(f"collection {found.collection!r} has no query {query_id!r}")
        runs = [each[0] for each in cells]
        rankings = [self._ranking(run, query_id) for run in runs]
        candidates, grades = runs[0].parents_summary.get("candidates"), {}
        try:
            if candidates and candidates.folder:
                path = self.store.fetch_file(f"{candidates.folder}/qrels.txt")
                grades = read_qrels(path).get(query_id, {})
            spec = jobs.explain(self.engine, runs[0].job_id, compare=False).spec["collection"]
            texts = _document_texts(spec, {id_ for each in rankings for id_ in each[:RANKED]})
        except (OSError, XsweepError) as error:
            log.warning("no texts of %s: %s", found.collection, error)
            texts = {}
        return {
            **{"query": query, "runs": runs, "rankings": rankings, "ranked": RANKED},
            **{"grades": grades, "texts": texts},
        }

    def _ranking(self, run: Cell, query_id: str) -> list[str]:
        """Document ids, best first; none where the store does not have the run."""
        try:
            lines = run_lines(self.store.fetch_file(f"{run.folder}/run.trec.gz"))
            scores = {doc_id: score for _, query, doc_id, score in lines if query == query_id}
        except (OSError, XsweepError) as error:
            log.warning("no ranking of %s: %s", run.name, error)
            return []
        return [doc_id for doc_id, _ in sort_docs(scores)]

    def _job(self, job: str, token: str) -> Answer:
        found, attempt = self._attempt(job, token)
        folder = self._results(attempt.folder) if attempt and attempt.folder else None
        return _page(
            "job",
            refresh=found.state in OPEN,
            job=found,
            attempt=attempt,
            events=events.history(self.engine, job_id=found.job_id, latest=LISTED_EVENTS),
            trials=_trials(found, folder) if folder else [],
            curves=read_curves(folder).values() if folder else (),
            tail=self._tail(attempt, TAIL_BYTES),
            spec=json.dumps(found.spec, indent=1),
        )

    def _job_curves(self, job: str, token: str) -> Answer:
        _, attempt = self._attempt(job, token)
        curves = read_curves(self._results(attempt.folder)) if attempt and attempt.folder else {}
        return _figures(line_figure(each.name, [each]) for each in curves.values())

    def _log(self, job: str, token: str) -> Answer:
        _, attempt = self._attempt(job, token)
        return Answer(self._tail(attempt, WHOLE_LOG_BYTES) or "", TEXT)

    def _attempt(self, job: str, token: str) -> tuple[jobs.Explanation, AttemptRow | None]:
        """A job, and its attempt with that token; without one, its last attempt."""
        found = jobs.explain(self.engine, job, compare=False)
        attempts = [each for each in found.attempts if not token or str(each.token) == token]
        if token and not attempts:
            raise ConfigError(f"{found.name!r} has no attempt {token}")
        return found, attempts[-1] if attempts else None

    def _results(self, name: str) -> Path:
        """A local folder with the files of an attempt's folder that pages read."""
        folder = self.store.resolve(name)
        copies = [self.store.fetch_file(f"{name}/{each}") for each in READ_FILES]
        return next((copy.parent for copy in copies if copy.exists()), folder)

    def _tail(self, attempt: AttemptRow | None, size_bytes: int) -> str | None:
        """The last lines of an attempt's log; None where there is none.

        Links are followed before the path is checked: none may lead out of the store.
        """
        if attempt is None or not attempt.log:
            return None
        path = self.store.fetch_file(attempt.log)
        if not path.resolve().is_relative_to(self.store.root.resolve()) or not path.is_file():
            return None
        with path.open("rb") as file:
            start = max(0, path.stat().st_size - size_bytes)
            file.seek(start)
            text = file.read(size_bytes).decode(errors="replace")
        return text.partition("\n")[2] if start else text


def _is_chosen(request: Request, labels: Mapping[str, Any], name: str) -> bool:
    """Match a run's labels with the ticked boxes, and its name with the typed words."""
    words = request.get("row").casefold().split()
    return all(word in name.casefold() for word in words) and all(
        str(labels[key]) in request.options[key]
        for key in LABELS
        if key in request.options and key in labels
    )


def _choices(labels: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The values of each label that runs can be chosen by."""
    found: dict[str, dict[str, None]] = {key: {} for key in LABELS}
    for each in labels:
        for key in LABELS:
            if each.get(key):
                found[key][str(each[key])] = None
    return {
        key: each for name, values in found.items() for key, each in _short(name, values).items()
    }


def _short(label: str, values: Iterable[str]) -> dict[str, list[str]]:
    """A label's values if there is a choice that fits the page."""
    listed = list(values)
    return {label: listed} if 1 < len(listed) <= MAX_CHOICES else {}


def _first(request: Request) -> int:
    return int(request.get("from")) if request.get("from").isdecimal() else 0


def _document_texts(spec: Mapping[str, Any], ids: set[str]) -> dict[str, str]:
    """Texts of documents as far as this machine has them; nothing is downloaded."""
    collection = _collection(json.dumps(spec, sort_keys=True)) if ids else None
    if collection is None:
        return {}
    if collection.lookup:
        return collection.lookup(ids)
    found: dict[str, str] = {}
    ends_s = time.monotonic() + TEXTS_S
    for doc_id, text in collection.documents():
        if doc_id in ids:
            found[doc_id] = text
        if len(found) == len(ids) or time.monotonic() > ends_s:
            break
    return found


@lru_cache(4)
def _collection(spec: str) -> "Texts | None":
    from xsweep.evaluator.data import irds, load_collection

    parsed: CollectionSpec = TypeAdapter(CollectionSpec).validate_json(spec)
    if isinstance(parsed, IrdsSpec) and not all(file.present for file in irds.sources(parsed)):
        return None
    return load_collection(parsed)


def _trials(found: jobs.Explanation, folder: Path) -> list[dict[str, Any]]:
    """A search's trials with their jobs, the best first; none for other jobs."""
    try:
        trials = json.loads((folder / "trials.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    ids = {parent.role: parent.job_id for parent in found.parents}
    trials.sort(key=lambda each: math.inf if each["validation"] is None else -each["validation"])
    return [{**each, "job_id": ids.get(each["trial"], found.job_id)} for each in trials]


@cache
def _templates() -> "Environment":
    from xsweep.orchestrator.report.render_html import templates

    environment = templates("xsweep.orchestrator.serve", "xsweep.orchestrator.report")
    environment.filters.update(
        duration=duration, clock=_clock, addresses=partial(urlencode, doseq=True)
    )
    return environment


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _render(name: str, **values: Any) -> str:
    return _templates().get_template(f"{name}.j2").render(**values)


def _page(name: str, *, refresh: bool = False, **values: Any) -> Answer:
    values |= {"refresh": REFRESH_MARK if refresh else "", "script": SCRIPT}
    return Answer(_render(f"{name}.html", **values))


def _message(text: str, code: HTTPStatus) -> Answer:
    return _page("message", text=text, code=code)._replace(status=code)


def _figures(figures: Iterable[Mapping[str, Any]]) -> Answer:
    return Answer(json.dumps(list(figures), allow_nan=False), JSON)


@cache
def _file(path: Path) -> str:
    return path.read_text(encoding="utf-8")
