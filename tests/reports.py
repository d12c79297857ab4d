"""Reports for tests, made with the options as keywords."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine

from xsweep.db.results import Cell
from xsweep.orchestrator.report import build_report, load_report, render
from xsweep.orchestrator.report.report import Report, ReportOptions


def make_report(cells: Sequence[Cell], sweep: str = "s", **options: Any) -> Report:
    return build_report(cells, sweep, ReportOptions(**options))


def report_text(
    engine: Engine, sweep: str | Sequence[str], format: str = "text", **options: Any
) -> str:
    return render(load_report(engine, sweep, ReportOptions(**options)), format)
