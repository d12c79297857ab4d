"""The pages: what each shows, from the database and from folders in the store."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from db import events, jobs, status
from db.overview import overview
from orchestrator.forecast import OPEN, count, prospect
from orchestrator.formatting import duration
from orchestrator.metrics import PROMETHEUS, as_text
from orchestrator.remote import fetch_file
from orchestrator.serve.curves import draw, read_curves
from orchestrator.serve.heatmap import MARKS, heat_map
from orchestrator.serve.server import TEXT, Answer, Request
from orchestrator.store import resolve
from xsweep import ConfigError, XsweepError

if TYPE_CHECKING:
    from jinja2 import Environment

log = logging.getLogger(__name__)

TAIL_BYTES = 32_000
SHOWN = ("metrics.jsonl", "trials.json")
"""What a job's page reads of an attempt's folder."""
WHOLE_LOG_BYTES = 5_000_000
LISTED = 1_000
EVENTS = 200
REFRESH_S = 15


@dataclass(frozen=True)
class Site:
    """Answers requests; `engine` should be read-only, and `store` need not be there."""

    engine: Engine
    store: Path
    database: str
    """What the pages call the database."""

    def respond(self, request: Request) -> Answer:
        """The answer to a request; an error becomes a page that says what was wrong."""
        try:
            match request.parts:
                case ():
                    return self._index()
                case ("style.css",):
                    return Answer(templates().get_template("style.css.j2").render(), "text/css")
                case ("metrics",):
                    return Answer(as_text(self.engine), PROMETHEUS)
                case ("sweep", name):
                    return self._sweep(name, request.options.get("measure"))
                case ("sweep", name, "jobs"):
                    return self._jobs(name, request.options)
                case ("job", number):
                    return self._job(number, request.options.get("attempt"))
                case ("job", number, "log"):
                    return self._log(number, request.options.get("attempt"))
            return _message("There is no such page.", HTTPStatus.NOT_FOUND)
        except ConfigError as error:
            return _message(str(error), HTTPStatus.NOT_FOUND)
        except XsweepError as error:
            return _message(str(error), HTTPStatus.SERVICE_UNAVAILABLE)
        except Exception:
            # the terminal is the user's own; a browser is told nothing of the inside
            log.exception("a page failed")
            told = "This page failed; the terminal of xsweep serve says why."
            return _message(told, HTTPStatus.INTERNAL_SERVER_ERROR)

    def _index(self) -> Answer:
        found = status.summary(self.engine)
        open_sweeps = any(count(sweep, OPEN) for sweep in found.sweeps)
        return _page(
            "index",
            refresh=open_sweeps,
            found=found,
            prospects={sweep.id: prospect(sweep, found) for sweep in found.sweeps},
            database=self.database,
            states=[state for state in (*MARKS, "done") if _has(found, state)],
        )

    def _sweep(self, name: str, measure: str | None) -> Answer:
        found = status.summary(self.engine, name)
        [sweep] = found.sweeps
        return _page(
            "sweep",
            refresh=bool(count(sweep, OPEN)),
            sweep=sweep,
            found=found,
            prospect=prospect(sweep, found),
            map=heat_map(overview(self.engine, sweep.id), measure),
            marks=MARKS,
        )

    def _jobs(self, name: str, options: dict[str, str]) -> Answer:
        state, kind = options.get("state") or None, options.get("kind") or None
        [sweep] = status.summary(self.engine, name).sweeps
        rows = status.jobs(self.engine, sweep.id, limit=LISTED, state=state, kind=kind)
        return _page("jobs", sweep=sweep, rows=rows, limit=LISTED, state=state, kind=kind)

    def _job(self, number: str, attempt: str | None) -> Answer:
        found = jobs.explain(self.engine, _number(number), compare=False)
        shown = _attempt(found, attempt)
        folder = self._results(shown.folder) if shown and shown.folder else None
        return _page(
            "job",
            refresh=found.state == "running",
            job=found,
            shown=shown,
            events=events.history(self.engine, job_id=found.job_id, latest=EVENTS),
            trials=_trials(found, folder) if folder else [],
            curves=[draw(curve) for curve in read_curves(folder)] if folder else [],
            tail=self._tail(shown, TAIL_BYTES),
            spec=json.dumps(found.spec, indent=1),
        )

    def _log(self, number: str, attempt: str | None) -> Answer:
        found = jobs.explain(self.engine, _number(number), compare=False)
        return Answer(self._tail(_attempt(found, attempt), WHOLE_LOG_BYTES) or "", TEXT)

    def _results(self, name: str) -> Path:
        """A folder that has what a page shows of an attempt's."""
        folder = resolve(self.store, name)
        copies = [fetch_file(self.store, f"{name}/{each}") for each in SHOWN]
        return next((copy.parent for copy in copies if copy.exists()), folder)

    def _tail(self, shown: Any, size_bytes: int) -> str | None:
        """The end of an attempt's log, from the beginning of a line on; None where there is none.

        Links are followed before the place is checked: none leads out of the store.
        """
        if shown is None or not shown.log:
            return None
        resolve(self.store, shown.log)
        path = fetch_file(self.store, shown.log)
        if not path.resolve().is_relative_to(self.store.resolve()) or not path.is_file():
            return None
        with path.open("rb") as file:
            start = max(0, path.stat().st_size - size_bytes)
            file.seek(start)
            text = file.read(size_bytes).decode(errors="replace")
        return text.partition("\n")[2] if start else text


@cache
def templates() -> "Environment":
    """The templates, which escape everything that is not marked as HTML of ours."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    folders = ("orchestrator.serve", "orchestrator.report")
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name, ".") for name in folders]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[[float], str]] = {"duration": duration, "clock": _clock}
    environment.filters.update(filters)
    return environment


def _page(name: str, *, refresh: bool = False, **values: Any) -> Answer:
    seconds = REFRESH_S if refresh else None
    return Answer(templates().get_template(f"{name}.html.j2").render(refresh_s=seconds, **values))


def _message(text: str, code: HTTPStatus) -> Answer:
    return _page("message", text=text, code=code)._replace(status=code)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ConfigError(f"{text!r} is not the number of a job")
    return int(text)


def _trials(found: jobs.Explanation, folder: Path) -> list[dict[str, Any]]:
    """What a search compared, with each trial's job; empty for other jobs."""
    try:
        trials = json.loads((folder / "trials.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    ids = {parent.role: parent.job_id for parent in found.parents}
    best_first = sorted(trials, key=_lost_by)
    return [{**trial, "job_id": ids.get(trial["trial"], found.job_id)} for trial in best_first]


def _lost_by(trial: dict[str, Any]) -> float:
    validation = trial["validation"]
    return math.inf if validation is None else -validation


def _attempt(found: jobs.Explanation, token: str | None) -> Any:
    """The attempt of that number; without one, the last."""
    tries = [each for each in found.attempts if token in (None, "", str(each.token))]
    if token and not tries:
        raise ConfigError(f"{found.name!r} has no attempt {token}")
    return tries[-1] if tries else None


def _has(found: status.Summary, state: str) -> bool:
    return any(count(sweep, (state,)) for sweep in found.sweeps)


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
