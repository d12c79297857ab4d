from dataclasses import replace

import pytest
from reports import make_report

from xsweep.db.results import ParentResult
from xsweep.orchestrator.report.render_html import code_of, data_of, jobs_behind, render_html

MD5 = "4d99696386f96a7f1631076bcc53ac3c"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"scores": {"path": "/data/a/scores.tsv", "md5": MD5}}, [f"scores.tsv md5 {MD5}"]),
        ({"file": {"path": "x/run.gz"}}, ["run.gz without a declared checksum"]),
        (
            {"collection": {"source": "irds", "id": "beir/scifact/test", "name": "s"}},
            ["ir_datasets beir/scifact/test"],
        ),
        (
            {"source": "apidocs", "name": "apidocs/test", "versions": {"python": "3.11"}},
            ["apidocs/test (python 3.11)"],
        ),
        (
            {"models": [{"package": "minilm", "version": "0.1"}, {"id": "bert", "revision": "a1"}]},
            ["package minilm 0.1", "bert a1"],
        ),
        ({"steps": 3, "depth": None}, []),
    ],
)
def test_data_anywhere_in_a_spec_are_named_with_their_checksums(spec, expected):
    assert list(data_of(spec)) == expected


def test_code_is_a_commit_with_a_note_if_files_differed():
    assert code_of({"source": {"commit": "ab" * 20, "dirty": True}}) == (
        "abababababab with local changes"
    )
    assert code_of({"source": None, "xsweep": "0.1"}) == "xsweep 0.1"


@pytest.fixture
def cells(make_cell):
    """A finished run and one that failed, both from the same training file."""
    run = ParentResult(
        identity="2" * 64,
        summary={},
        provenance={"spec": {"teacher": {"scores": {"path": "t/scores.tsv", "md5": MD5}}}},
        name="train L6 s1",
        folder="jobs/train/2/attempt-3",
        manifest_sha256="7" * 64,
    )
    made = {
        "provenance": {"source": {"commit": "c0ffee" * 7}, "started": "2026-01-01", "spec": {}},
        "folder": "jobs/evaluate/3/attempt-1",
    }
    done = make_cell(0, AP=[0.2, 0.3])
    failed = make_cell(1, seed=2, state="failed", failure="NAN")
    parents = done.parents_summary | {"run": run}
    return [replace(done, parents_summary=parents, **made), failed]


def test_every_job_behind_the_numbers_is_listed_once(cells):
    found = jobs_behind(cells * 2)
    assert len({job["identity"] for job in found}) == len(found)
    jobs = {job["name"]: job for job in found}
    train = jobs["train L6 s1"]
    assert train["data"] == [f"scores.tsv md5 {MD5}"]
    assert (train["folder"], train["manifest"]) == ("jobs/train/2/attempt-3", "7" * 64)
    assert jobs[cells[0].name]["code"] == "c0ffeec0ffee"


def test_a_number_on_the_page_leads_to_its_files_and_jobs(cells):
    page = render_html(make_report(cells, measures=["AP"], baselines=[]))
    assert "jobs/evaluate/3/attempt-1/per_query.json" in page
    assert f'href="#job-{"2" * 12}"' in page
    assert f'<tr id="job-{"2" * 12}">' in page
    assert f"scores.tsv md5 {MD5}" in page
    # an evaluation without a result has no job to link to
    assert f'href="#job-{cells[1].identity[:12]}"' not in page
