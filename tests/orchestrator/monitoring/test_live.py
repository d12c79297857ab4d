"""The live view on a real pseudo terminal, over a real job table."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from served_sweep import half_done
from terminal import Terminal

PROGRAM = """
import logging, sys, time
from xsweep.db import jobs
from xsweep.db.engine import connect
from xsweep.db.status import list_jobs, summary
from xsweep.orchestrator.monitoring import live

live.REFRESH_S = 0.05
logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
log = logging.getLogger("xsweep")
engine = connect(sys.argv[1])
with live.live_view(engine) as draw:
    for number in range(60):
        log.info("line %d %s", number, "x" * (number % 3 * 50))
        draw()
        time.sleep(0.02)
    for (job,) in (jobs.running(engine),):
        jobs.fail(engine, job.lease, failure="NAN", reason="the loss of step 7 is [nan]")
    draw()
log.info("the end")
"""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return half_done(tmp_path_factory.mktemp("live"))[0]


def show(terminal: Terminal, url: str, folder: Path, **environment: str) -> list[str]:
    """Run the program; gives every screen that was seen."""
    process = terminal.start("-c", PROGRAM, url, folder=folder, **environment)
    seen = []
    while terminal.read():
        seen.append(terminal.screen.seen())
    assert process.wait() == 0, terminal.screen.all()
    return seen


@pytest.mark.slow(5)
@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (200, 50)])
def test_a_terminal_shows_bars_failures_and_the_table_below_every_line_of_the_log(
    database: str, tmp_path: Path, columns: int, lines: int
) -> None:
    copy = copy_of(database, tmp_path)
    terminal = Terminal(columns, lines)
    seen = show(terminal, copy, tmp_path)
    whole = terminal.screen.all()
    logged = re.findall(r"^line (\d+)\b", whole, re.MULTILINE)
    assert logged == [str(number) for number in range(60)]
    table = re.compile(r"running \(1\).*margin_mse +\S*0\.\d{3}", re.DOTALL)
    running = next(screen for screen in seen if table.search(screen))
    row = next(line for line in running.splitlines() if "48%" in line)
    assert re.search(r"train .*s2 +━+.*48%.* 21\.5 .*90 s", row)
    assert running.count("small: nDCG@10 on ") == 1
    assert "failed evaluate" not in running, "it failed before"
    last = terminal.screen.seen()
    assert "failed train " in last
    assert "NAN: the loss of step 7 is [nan]" in whole.replace("\n", "")
    assert last.rstrip().endswith("the end")
    assert whole.count("jobs done") == 1, "the view is drawn in place"


@pytest.mark.slow(5)
def test_a_pipe_and_a_dumb_terminal_get_the_log_alone(database: str, tmp_path: Path) -> None:
    copy = copy_of(database, tmp_path)
    expected = [f"line {number} {'x' * (number % 3 * 50)}" for number in range(60)] + ["the end"]
    piped = subprocess.run(
        [sys.executable, "-c", PROGRAM, copy],
        env={"FORCE_COLOR": "1", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert piped.stdout == ""
    assert piped.stderr.splitlines() == expected
    terminal = Terminal(300, 24)
    show(terminal, copy_of(database, tmp_path / "dumb"), tmp_path, TERM="dumb")
    assert [line.rstrip() for line in terminal.screen.lines if line] == [
        line.rstrip() for line in expected
    ]


def copy_of(url: str, folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    source = Path(url.removeprefix("sqlite:///"))
    (folder / "copy.db").write_bytes(source.read_bytes())
    return f"sqlite:///{folder / 'copy.db'}"
