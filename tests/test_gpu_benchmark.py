"""The benchmark for GPUs runs on a CPU too, so that it works the first time there is one."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_section_gives_figures_in_its_json(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--seconds", "0.1"]
    command += ["--layers", "1", "--pairs", "2", "--shapes", "minilm"]
    command += ["--sections", "scoring", "training", "resume", "memory", "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=280)
    result = json.loads(out.read_text())
    assert result["about"]["versions"]["torch"].startswith("2.")
    rows = {section: result[section] for section in ("scoring", "training")}
    for section, found in rows.items():
        for row, figures in found.items():
            assert figures.get("pairs_per_s", 0) > 0, (section, row, figures)
            assert 0 < figures["of_products"] < 1.5
            assert figures["peak_mib"] > 0
    assert len(rows["scoring"]) == 2 * 2
    assert len(rows["training"]) == 2 * 3
    padding = [figures["padding"] for row, figures in rows["training"].items() if "unp" in row]
    assert padding == [0] * 2
    assert result["resume"]["plain"]["exit_codes"] == [0, -9, 0]
    assert result["resume"]["plain"]["equal"]
    assert result["memory"]["capped"]["exit_code"] == 0
    assert result["memory"]["capped"]["halved_budgets"]


def test_what_the_time_limit_leaves_out_says_so(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--limit", "0"]
    command += ["--layers", "1", "--pairs", "2", "--shapes", "minilm", "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=280)
    result = json.loads(out.read_text())
    rows = [row for part in ("scoring", "training", "peers") for row in result[part].values()]
    assert rows
    assert all(row == {"left_out": "the time limit was reached"} for row in rows)
