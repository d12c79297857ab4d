"""The TREC-DL sweep on the real pools, its trainings cut to two steps of one layer."""

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

PROJECT = Path(__file__).parents[3]


@pytest.mark.slow(30)
def test_the_trec_dl_sweep_runs_on_real_data_and_its_first_stage_has_the_known_figure(
    guest, real_data
):
    grid = YAML(typ="safe").load(PROJECT / "sweeps" / "trec_dl.yaml")
    grid["seeds"] = [1]
    grid["backbones"][0]["layers"] = 1
    grid["objectives"] = {
        "infonce": {"teachers": "qrels"},
        "margin_mse": {"teachers": "monot5"},
        "distill_ranknet": {"teachers": "rankvicuna"},
    }
    grid["training"] |= {"steps": 2, "warmup_steps": 1, "document_tokens": 32, "engine": "plain"}
    grid["evaluation"] |= {"collections": ["dl20"], "depth": 10, "precision": "auto"}
    with (guest.folder / "short.yaml").open("w") as file:
        YAML().dump(grid, file)

    guest.environment["XSWEEP_DATA_HOME"] = str(real_data)
    guest.command("submit", "short.yaml", "--no-start")
    guest.xsweep("run")
    report = json.loads(guest.command("report", "trec_dl", "--format", "json"))
    (bm25,) = [each for each in report["places"] if each["system"] == "first_stage"]
    assert round(bm25["mean"], 4) == 0.4803, "BM25 on TREC-DL 2020 by trec_eval's rule"
    assert bm25["queries"] == 54
    done = guest.status()["sweeps"][0]["counts"]
    assert done["train"] == {"done": 3}
    assert done["evaluate"] == {"done": 4}
