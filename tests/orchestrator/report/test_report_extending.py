"""The steps for a report format in docs/extending.md, followed in a copy of the package."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from finished_sweep import submit, work

from xsweep.db.engine import connect

PROJECT = Path(__file__).parents[3]
SECTION = (PROJECT / "docs" / "extending.md").read_text().partition("## A report format\n")[2]
((FILE, CODE),) = re.findall(
    r"`([\w/.]+\.\w+)`:\n\n```python\n(.*?)```", SECTION.partition("\n## ")[0], re.DOTALL
)
(COMMAND,) = re.findall(r"```console\nxsweep (.*)\n```", SECTION.partition("\n## ")[0])


@pytest.mark.slow(3)
def test_a_report_format_is_added_by_one_file(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(PROJECT / "orchestrator", copy / "orchestrator")
    shutil.copytree(PROJECT / "xsweep", copy / "xsweep", symlinks=True)
    for name in ("db", "evaluator", "trainer"):
        (copy / name).symlink_to(PROJECT / name)
    with (copy / FILE).open("a") as file:
        file.write(f"\n\n{CODE}")
    (tmp_path / ".xsweep").mkdir()
    engine = connect(f"sqlite:///{tmp_path / '.xsweep' / 'xsweep.db'}", create=True)
    submit(engine)
    work(engine, until=8)
    done = subprocess.run(
        [sys.executable, "-m", "xsweep.orchestrator", *shlex.split(COMMAND)],
        env={**os.environ, "PYTHONPATH": str(copy), "XSWEEP_HOME": str(tmp_path / ".xsweep")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # BM25 has a mean of (0.1 + 0.2 + 0.1 + 0.0 + 0.1) / 5, the runs (0.54 + 0.64) / 2
    assert done.stdout == (
        '#table(columns: 2, "System", "nDCG@10 news", "BM25 (first stage)", "0.100", '
        '"L6 infonce", "0.590")\n'
    )
