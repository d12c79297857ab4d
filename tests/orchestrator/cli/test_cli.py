"""The program from outside: what it prints, which exit code it returns, what it leaves behind."""

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from finished import run_all, submit_small
from gridtext import write_grid
from tiny import write_backbone, write_collection, write_study
from typer.testing import CliRunner, Result

from xsweep import __version__
from xsweep.db import jobs
from xsweep.db.engine import connect
from xsweep.db.status import list_jobs
from xsweep.evaluator.data.trec import read_run
from xsweep.orchestrator.cli import app
from xsweep.orchestrator.cli.app import Program, _global_options_first
from xsweep.orchestrator.cli.evaluate import _model
from xsweep.orchestrator.rehearsal.models import write_model
from xsweep.orchestrator.settings import load_settings

PROJECT = Path(__file__).resolve().parents[3]
HEAVY = (
    *("torch", "ray", "transformers", "deepspeed", "numpy", "scipy", "pandas", "ir_datasets"),
    *("alembic", "jinja2", "ruamel.yaml"),
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XSWEEP_DB", "XSWEEP_STORE", "XSWEEP_DATA_HOME", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XSWEEP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def xsweep(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments), prog_name="xsweep")
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def submitted(home: Path, tmp_path: Path) -> Path:
    xsweep("submit", str(write_grid(tmp_path)), "--no-start")
    return home


def test_a_dry_run_shows_the_plan_and_stores_nothing(home: Path, tmp_path: Path) -> None:
    output = xsweep("submit", str(write_grid(tmp_path)), "--dry-run").stdout
    assert "small: 6 runs, 19 jobs (4 prepare, 1 teach, 8 evaluate, 6 train): 19 new" in output
    assert "margin_mse × minilm (L6 s1, L6 s2): excluded in line 16" in output
    assert "nothing was stored" in output
    assert not home.exists()


def test_submitting_again_adds_nothing_and_a_larger_grid_its_new_cells(
    submitted: Path, tmp_path: Path
) -> None:
    again = xsweep("submit", str(write_grid(tmp_path)), "--no-start").stdout
    assert "19 jobs" in again
    assert "0 new, 19 known, 0 done" in again
    larger = write_grid(tmp_path, ("[1, 2]", "[1, 2, 3]"))
    assert "25 jobs" in (planned := xsweep("plan", str(larger)).stdout)
    assert "6 new, 19 known" in planned
    assert re.search(
        r"Speed of a training on 2, 4, 8 processes .*\n  \d\.\d×, \d\.\d×, \d\.\d×  ", planned
    )
    assert "6 new, 19 known" in xsweep("submit", str(larger), "--no-start").stdout


def test_a_changed_setting_is_refused_by_submit_and_plan_and_replaced_on_request(
    submitted: Path, tmp_path: Path
) -> None:
    changed = str(write_grid(tmp_path, ("lr: 3e-5", "lr: 5e-5")))
    refusal = (
        "error: sweep 'small' has cells that this grid changes: lr (3e-05 before, 5e-05 now) in 4 "
        "cells: L3 infonce bm25 s1, L3 infonce bm25 s2, L3 margin_mse minilm s1, L3 margin_mse "
        "minilm s2. Give the grid another name to keep both, or submit it with --replace: jobs "
        "that are not in this grid leave the sweep, their results stay stored\n"
    )
    refused = xsweep("submit", changed, "--no-start", code=2)
    assert (refused.stdout, refused.stderr) == ("", refusal)
    for preview in (["plan"], ["submit", "--dry-run"]):
        shown = xsweep(*preview, changed, code=2)
        assert "8 new, 11 known, 0 done" in shown.stdout
        assert shown.stderr == refusal
    # 4 trainings and their 4 evaluations change
    replaced = xsweep("submit", changed, "--replace", "--no-start").stdout
    assert "8 new, 11 known, 0 done\n8 jobs leave the sweep; their results stay stored." in replaced
    assert "small: 0 of 19 jobs done" in xsweep("status").stdout
    assert "All invariants hold" in xsweep("db", "check").stdout


def test_more_measures_need_no_flag(submitted: Path, tmp_path: Path) -> None:
    more = str(write_grid(tmp_path, ("[nDCG@10]", "[nDCG@10, AP]")))
    assert "8 jobs leave the sweep" in xsweep("submit", more, "--no-start").stdout
    fewer = xsweep("submit", str(write_grid(tmp_path)), "--no-start", code=2).stderr
    assert "measures (['nDCG@10', 'AP'] before, ['nDCG@10'] now) in 8 cells" in fewer


def test_gpus_that_this_machine_lacks_are_warned_of(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xsweep.orchestrator.cli.sweep.DEVICES", tmp_path)
    path = str(write_grid(tmp_path, ("validation:", "resources: {train: {gpus: 1}}\nvalidation:")))
    warning = "warning: train jobs ask for GPUs, which this machine lacks: leave `gpus` out"
    for command in (["plan"], ["submit", "--no-start"]):
        assert xsweep(*command, path).stderr.startswith(warning)
    assert xsweep("plan", str(write_grid(tmp_path))).stderr == ""
    path = str(write_grid(tmp_path, ("validation:", "resources: {train: {gpus: 1}}\nvalidation:")))
    assert xsweep("--ray-address", "192.0.2.1:6379", "plan", path).stderr == ""
    (tmp_path / "nvidia0").touch()
    assert xsweep("plan", path).stderr == ""


def test_a_sweep_is_dropped_only_with_yes(submitted: Path, tmp_path: Path) -> None:
    counts = (
        "sweep small of 19 jobs: 0 done, whose results stay stored; 0 shared with other sweeps, "
        "which stay; 19 cancelled, since no other sweep needs them."
    )
    shown = xsweep("drop", "small").stdout
    assert shown == (
        f"Would remove {counts}\nNothing was changed. To remove it: xsweep drop small --yes\n"
    )
    assert "small: 0 of 19" in xsweep("status").stdout
    assert xsweep("drop", "small", "--yes").stdout == f"Removed {counts}\n"
    assert "No sweep has been submitted yet" in xsweep("status").stdout
    assert "no sweep 'small'" in xsweep("drop", "small", code=2).stderr
    again = xsweep("submit", str(write_grid(tmp_path)), "--no-start").stdout
    assert "0 new, 19 known" in again
    assert "All invariants hold" in xsweep("db", "check").stdout


def test_a_wrong_grid_is_one_message_exit_code_2_and_no_change(home: Path, tmp_path: Path) -> None:
    path = write_grid(tmp_path, ("seeds:", "seed:"))
    result = xsweep("submit", str(path), code=2)
    assert result.stderr == (f"error: {path}:11:1: unknown key 'seed': did you mean 'seeds'?\n")
    assert result.stdout == ""
    assert not home.exists()


def test_status_tells_what_is_left(submitted: Path) -> None:
    output = xsweep("status").stdout
    assert re.search(r"small: 0 of 19 jobs done, about (\d+ h )?\d+ min left", output)
    assert "No controller is running. Next: xsweep run" in output
    assert xsweep("status", "--jobs", "--state", "ready").stdout.count("prepare ") == 4


def test_listed_jobs_are_selected_by_kind_state_and_name(submitted: Path) -> None:
    listed = xsweep("status", "--kind", "train", "--match", "L3 infonce").stdout.splitlines()
    assert [line[30:] for line in listed] == [
        "train L3 infonce bm25 s1",
        "train L3 infonce bm25 s2",
    ]
    assert xsweep("status", "--match", "L%").stdout == ""
    assert (
        "unknown kind 'training': use one of"
        in xsweep("status", "--kind", "training", code=2).stderr
    )


@pytest.mark.parametrize("command", ["--help", "status", "schema", "plan quickstart"])
def test_a_reader_that_closes_its_pipe_is_no_error(submitted: Path, command: str) -> None:
    program = [sys.executable, "-m", "xsweep.orchestrator", *command.split()]
    shell = f"{shlex.join(program)} | head -c 1 >/dev/null; exit ${{PIPESTATUS[0]}}"
    found = subprocess.run(
        ["bash", "-c", shell], capture_output=True, text=True, check=False, cwd=submitted.parent
    )
    assert (found.returncode, found.stderr) == (0, "")


def test_marks_that_the_output_lacks_are_replaced(submitted: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    program = [sys.executable, "-m", "xsweep.orchestrator", "plan", "quickstart"]
    found = subprocess.run(program, capture_output=True, check=True, env=environment)
    assert "bce × bm25_pairs (MiniLM-L6 s1)".encode("latin-1") in found.stdout
    program[3:] = ["status"]
    found = subprocess.run(program, capture_output=True, check=True, env=environment)
    assert b"small: 0 of 19 jobs done" in found.stdout


def test_a_pipe_is_as_wide_as_columns_says(
    submitted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    assert 20 < max(map(len, xsweep("status").stdout.splitlines())) <= 30
    monkeypatch.setenv("COLUMNS", "200")
    assert re.search(
        r"^small: 0 of 19 jobs done, about (\d+ h )?\d+ min left$", xsweep("status").stdout, re.M
    )


def test_status_as_json_has_its_documented_keys(submitted: Path) -> None:
    document = json.loads(xsweep("status", "small", "--json").stdout)
    assert document["schema"] == "xsweep.status/1"
    assert document.keys() == {
        *("schema", "database", "at", "sweeps", "running", "failures", "mean_s", "controllers"),
        *("oldest_ready_s", "pace", "troubles"),
    }
    [sweep] = document["sweeps"]
    assert sweep.keys() == {
        *("id", "name", "state", "created_at", "counts", "total", "cost_s", "eta_s"),
    }
    assert sweep["counts"]["prepare"] == {"ready": 4}
    listed = json.loads(xsweep("status", "--jobs", "--json").stdout)
    assert listed["schema"] == "xsweep.jobs/1"
    assert len(listed["jobs"]) == 19
    assert {"job_id", "identity", "name", "state", "reason"} <= listed["jobs"][0].keys()


def test_running_and_failed_jobs_are_shown_with_progress_and_reason(submitted: Path) -> None:
    engine = connect(f"sqlite:///{submitted / 'xsweep.db'}")
    held, lost = jobs.claim(engine, owner="me", limit=2, lease_s=60)
    progress = {"done": 30, "total": 120, "pairs_per_s": 21.4, "node": "n1"}
    jobs.renew(engine, [held.lease], lease_s=60, progress={held.lease: progress})
    jobs.fail(engine, lost.lease, failure="DATA", reason="corpus [gone]\nmore")
    output = xsweep("status").stdout
    row = next(line for line in output.splitlines() if "30/120 25%" in line)
    pairs_per_s, *_, node = row[row.index("25%") :].split()[1:]
    assert (pairs_per_s, node) == ("21.4", "n1")
    assert f"failed {lost.name}: DATA: corpus [gone]" in output
    assert "xsweep retry SWEEP" in output
    assert "failed" in xsweep("explain", str(lost.job_id)).stdout
    assert "will be retried" in xsweep("retry", "small", "--failure", "DATA").stdout
    assert "failed" not in xsweep("status").stdout


def test_sweeps_and_jobs_are_steered(submitted: Path) -> None:
    xsweep("pause", "small")
    assert "small (paused)" in xsweep("status").stdout
    xsweep("resume", "small")
    assert "(paused)" not in xsweep("status").stdout
    assert "Cancelled 1 jobs" in xsweep("cancel", "--job", "8").stdout
    assert "Cancelled" in xsweep("cancel", "small").stdout
    assert "small (cancelled): 0 jobs done, 19 failed, skipped or cancelled" in (
        xsweep("status").stdout
    )


def test_explain_names_what_a_job_waits_for(submitted: Path) -> None:
    output = xsweep("explain", "train L3 infonce bm25 s1").stdout
    assert "waits for candidates: prepare candidates bm25-30 [apidocs/train] (ready)" in output


def test_logs_are_those_of_the_last_attempt(submitted: Path) -> None:
    assert "has no attempt with a log yet" in xsweep("logs", "1", code=2).stderr
    engine = connect(f"sqlite:///{submitted / 'xsweep.db'}")
    [claim] = jobs.claim(engine, owner="me", limit=1, lease_s=60)
    folder = f"jobs/{claim.identity}/attempt-1"
    place = jobs.Place(actor="a", node="n", folder=folder, log=f"{folder}.log")
    jobs.mark_started(engine, {claim.lease: place})
    log = submitted / "store" / place.log
    log.parent.mkdir(parents=True)
    log.write_text("step 1\nstep 2\n")
    assert xsweep("logs", str(claim.job_id)).stdout == "step 1\nstep 2\n"
    jobs.release(engine, claim.lease, reason="leaving")
    assert xsweep("logs", str(claim.job_id), "--follow").stdout == "step 1\nstep 2\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "smal"], "did you mean 'small'?"),
        (["status", "--state", "lost"], "unknown state 'lost'"),
        (["explain", "train L9"], "no job 'train L9'"),
        (["pause", "smal"], "did you mean 'small'?"),
        (["retry", "small", "--failure", "OOM"], "unknown failure class 'OOM'"),
        (["report", "--format", "pdf"], "unknown format 'pdf'"),
        (["report", "--where", "small"], "write label=value"),
        (["report"], "nothing to report"),
        (["evaluate", "nowhere"], "nothing to evaluate on"),
        (["evaluate", "no such run"], "neither a folder, nor a Hub id, nor a run that is trained"),
        (
            ["evaluate", "a/b", "--prompt", "qwen"],
            "--prompt: prompt: unknown prompt 'qwen': write one of qwen3-",
        ),
    ],
)
def test_wrong_names_end_with_exit_code_2_and_a_suggestion(
    submitted: Path, arguments: list[str], message: str
) -> None:
    result = xsweep(*arguments, code=2)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_environment_that_is_wrong_ends_with_exit_code_3(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XSWEEP_DB", "mysql://user:secret@host/x")
    result = xsweep("status", code=3)
    assert "mysql is not supported" in result.stderr
    assert "secret" not in result.output
    monkeypatch.delenv("XSWEEP_DB")
    assert xsweep("status", code=3).stderr.startswith("error: ")


def test_a_password_on_the_command_line_is_refused(home: Path) -> None:
    result = xsweep("--db", "postgresql+psycopg://me:secret@host/x", "status", code=2)
    assert "set XSWEEP_DB to this URL instead" in result.stderr
    assert "secret" not in result.output


def test_a_grid_whose_files_are_missing_is_refused_before_a_job_table_is_made(home: Path) -> None:
    (home.parent / "runs").mkdir()
    (home.parent / "runs" / "apidocs-test.run").write_text("q Q0 d 1 1.0 x\n")
    grid = write_grid(home.parent, ("depth: 20", "first_stage: {runs: runs}"))
    result = xsweep("submit", str(grid), "--no-start", code=2)
    assert "1 files that the jobs depend on are missing, first " in result.stderr
    assert not (home / "xsweep.db").exists()


def test_the_program_alone_prints_its_help(home: Path) -> None:
    shown = CliRunner().invoke(app, [], prog_name="xsweep").output
    assert "First steps:" in shown
    assert "Missing command" not in shown


def test_without_a_sweep_there_is_a_hint(home: Path) -> None:
    xsweep("db", "upgrade")
    assert "No sweep has been submitted yet" in xsweep("status").stdout
    assert "no sweep has been submitted yet" in xsweep("report", code=2).stderr


def test_the_database_is_checked_and_copied(submitted: Path, tmp_path: Path) -> None:
    assert xsweep("db", "check").stdout == "All invariants hold.\n"
    xsweep("db", "backup", str(tmp_path / "copy.db"))
    assert "19 jobs" in xsweep("--db", f"sqlite:///{tmp_path / 'copy.db'}", "status").stdout


def test_an_unexpected_error_is_short_and_its_traceback_in_a_file(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("xsweep.orchestrator.cli.doctor._database", broken)
    result = xsweep("doctor", code=1)
    assert result.stderr.startswith("error: ZeroDivisionError: by zero\nThe full traceback is in ")
    [crash] = (home / "logs").glob("crash-*.txt")
    assert "Traceback" in crash.read_text()


def test_ctrl_c_is_one_line_and_130(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("xsweep.orchestrator.cli.doctor._database", interrupted)
    assert xsweep("doctor", code=130).stderr == "interrupted\n"


def test_the_doctor_says_what_fails_and_what_to_do(home: Path, tmp_path: Path) -> None:
    lines = xsweep("doctor").stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["ok", name] for name in ("database", "store", "packages", "devices", "Ray", "data")
    ]
    (tmp_path / "file").touch()
    broken = xsweep(
        *("--store", str(tmp_path / "file"), "--data-home", str(tmp_path / "none"), "doctor"),
        code=3,
    ).stdout
    assert "FAIL  store" in broken
    assert "choose another folder with --store" in broken
    assert "is not a folder: see --data-home" in broken


def test_files_of_a_grid_are_listed_and_checked(home: Path, tmp_path: Path) -> None:
    (tmp_path / "a.run").write_text("1 Q0 d 1 1.0 x\n")
    good = write_grid(tmp_path, ("run: bm25", "run: a.run"))
    assert f"{tmp_path / 'a.run'}" in xsweep("data", "list", str(good)).stdout
    assert xsweep("data", "check", str(good)).stdout.startswith("ok ")
    wrong = write_grid(tmp_path, ("run: bm25", f"run: a.run, md5: {'b' * 32}"))
    assert "declared is bbb" in xsweep("data", "check", str(wrong), code=2).stdout


def test_options_of_all_commands_may_stand_after_the_command() -> None:
    words = ["status", "--db", "sqlite:///x", "--json", "--store=s", "--", "--db"]
    assert _global_options_first(words) == [
        *("--db", "sqlite:///x", "--store=s", "status", "--json", "--", "--db")
    ]


def test_every_command_explains_its_options_in_full_and_itself_with_an_example(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")

    def helps(group: Program, *path: str) -> None:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                helps(command, *path, name)
                continue
            output = xsweep(*path, name, "--help").stdout
            assert (
                f"xsweep {' '.join([*path, name])}" in output.split("Usage:")[1].split("\n", 1)[1]
            )
            # [in brackets] would be markup, and vanish
            for option in command.params:
                if not getattr(option, "hidden", False):
                    assert option.help in output, option.name

    helps(typer.main.get_group(app))


@pytest.mark.slow(1)
@pytest.mark.parametrize(
    ("command", "unneeded"),
    [
        ("--help", {*HEAVY, "sqlalchemy", "pydantic", "email"}),
        ("status", {*HEAVY, "psycopg", "sqlalchemy.dialects.postgresql"}),
    ],
)
def test_help_and_status_load_nothing_that_they_do_not_need(
    submitted: Path, command: str, unneeded: set[str]
) -> None:
    probe = (
        "import sys\nfrom xsweep.orchestrator.cli import main\n"
        f"try: main([{command!r}])\nexcept SystemExit: pass\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, check=True, text=True, cwd=PROJECT
    )
    loaded = done.stdout.splitlines()[-1].split()
    assert "xsweep.orchestrator.cli.status" in loaded
    assert unneeded.isdisjoint(loaded), unneeded.intersection(loaded)


def test_the_version_is_printed(home: Path) -> None:
    assert xsweep("version").stdout == f"{__version__}\n"
    assert xsweep("--version").stdout == f"{__version__}\n"


def test_shell_completion_offers_the_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from xsweep.orchestrator.cli import main; main()"],
        env={
            **os.environ,
            "_XSWEEP_COMPLETE": "complete_bash",
            "COMP_WORDS": "xsweep st",
            "COMP_CWORD": "1",
        },
        capture_output=True,
        text=True,
        cwd=PROJECT,
    )
    assert done.stdout.split() == ["status", "store"]


def test_a_language_model_is_evaluated_with_its_prompt(home: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "llm", "a/b", family="a/b", head="next")
    write_collection(tmp_path / "mine", queries=3, documents=9)
    command = ("evaluate", str(tmp_path / "llm"), "--collection", str(tmp_path / "mine"), "--json")
    found = [
        json.loads(xsweep(*command, "--prompt", prompt, "-o", str(tmp_path / prompt)).stdout)
        for prompt in ("qwen3-reranker", "bge-reranker-gemma")
    ]
    runs = [
        read_run(tmp_path / prompt / "mine" / "model" / "run.trec.gz")["q0"]
        for prompt in ("qwen3-reranker", "bge-reranker-gemma")
    ]
    assert all(each["results"][0]["means"]["nDCG@10"]["model"] > 0 for each in found)
    assert runs[0] != runs[1]
    again = xsweep(*command, "--prompt", "monot5", "-o", str(tmp_path / "qwen3-reranker"), code=2)
    assert "holds another evaluation" in again.stderr
    # a listwise LLM reranks the same candidates
    windows = ("--listwise", "first", "--window", "4", "--stride", "2", "--depth", "9")
    (listed,) = json.loads(xsweep(*command, *windows, "-o", str(tmp_path / "first")).stdout)[
        "results"
    ]
    ranked = read_run(tmp_path / "first" / "mine" / "model" / "run.trec.gz")["q0"]
    candidates = read_run(tmp_path / "first" / "mine" / "first-stage" / "run.trec.gz")["q0"]
    assert {*ranked} == {*candidates}
    assert sorted(ranked.values()) == [float(-rank) for rank in range(len(ranked), 0, -1)]
    assert listed["means"]["nDCG@10"]["model"] > 0
    refused = xsweep(*command, "--server", "http://127.0.0.1:9/v1", code=2)
    assert "a listwise_llm is one model; a server knows it by its id" in refused.stderr


def test_a_model_is_evaluated_beside_its_first_stage(home: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    backbone = write_backbone(tmp_path / "backbone")
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=1)
    model.save_pretrained(tmp_path / "trained" / "model")
    AutoTokenizer.from_pretrained(backbone).save_pretrained(tmp_path / "trained" / "model")
    texts = {"d1": "w1 w2 w3", "d2": "w4 w5 w6", "d3": "w1 w7 w8"}
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": name, "text": text}) for name, text in texts.items()]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "w1 w2"}))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td1\t1\n")
    output = xsweep(
        *("evaluate", str(tmp_path / "trained"), "--collection", str(folder), "-m", "RR@10"),
        *("-o", str(tmp_path / "out")),
    ).stdout
    # BM25 finds d1 first; the untrained model's own order is in the run that it leaves.
    run = read_run(tmp_path / "out" / "beir" / "model" / "run.trec.gz")["q"]
    rank = list(run).index("d1") + 1
    assert output == (
        "beir  (1 queries, first stage R@100 1.0000)\n"
        f"  RR@10        {1 / rank:.4f}  (first stage 1.0000)\n"
    )
    # the order of a run's ranks, another split, and one object for scripts
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "dev.tsv")
    (tmp_path / "given.run").write_text("q Q0 d2 1 0.1 x\nq Q0 d1 2 0.9 x\n")
    arguments = ("--split", "dev", "--run", str(tmp_path / "given.run"), "--order", "rank")
    document = json.loads(
        xsweep(
            *("evaluate", str(tmp_path / "trained"), "--collection", str(folder), "-m", "RR@10"),
            *(*arguments, "--json"),
        ).stdout
    )
    assert document["schema"] == "xsweep.evaluate/1"
    assert document["model"]["folder"] == str(tmp_path / "trained" / "model")
    (result,) = document["results"]
    assert result["means"]["RR@10"]["first_stage"] == 0.5


def test_a_trained_run_is_evaluated_by_its_name(tmp_path: Path) -> None:
    engine, store = submit_small(tmp_path), tmp_path / "store"
    run_all(engine, store)
    home = tmp_path / ".xsweep"
    settings = replace(
        load_settings(), home=home, database=f"sqlite:///{home / 'xsweep.db'}", store=str(store)
    )
    (training,) = list_jobs(engine, match="train L3 infonce bm25 s1")
    folder = jobs.explain(engine, training.job_id).folder
    for name in ("L3 infonce bm25 s1", "train L3 infonce bm25 s1", training.identity[:12]):
        assert _model(settings, name)["folder"] == str(store / str(folder) / "model")
    assert _model(settings, "bert-base-uncased") == {"id": "bert-base-uncased"}


def checked_options() -> Iterator[tuple[str, str]]:
    """Each command's options that are numbers or choices."""
    for name, command in typer.main.get_group(app).commands.items():
        hints = (
            inspect.get_annotations(inspect.unwrap(command.callback)) if command.callback else {}
        )
        for parameter in command.params:
            kind = str(hints.get(parameter.name))
            if re.search(r"Literal|\b(int|float)\b", kind):
                yield name, parameter.opts[0]


@pytest.mark.parametrize(("command", "option"), [*checked_options()])
def test_a_wrong_value_of_an_option_is_answered_in_one_sentence(
    command: str, option: str, home: Path
) -> None:
    [line] = xsweep(command, option, "many", code=2).stderr.splitlines()
    assert re.fullmatch(f"error: {option}(: 'many' is not one| should be a valid .*'many').*", line)


def test_options_that_are_numbers_or_choices_are_found() -> None:
    found = {option for _, option in checked_options()}
    assert {"--precision", "--order", "--depth", "--columns", "--port", "--attempt"} <= found


@pytest.mark.slow(3)
def test_submit_says_why_the_controller_that_it_started_ended(workplace) -> None:
    write_study(workplace.folder)
    (workplace.folder / "file").touch()
    workplace.environment["XSWEEP_STORE"] = str(workplace.folder / "file" / "store")
    output = workplace.xsweep("submit", "tiny.yaml", code=3)
    assert "error: the controller that was started ended at once: error: " in output
    assert "file/store" in output
    assert "9 new" in output, "the jobs are stored all the same"


def test_a_controller_of_a_folder_without_sweeps_makes_its_job_table_and_ends(workplace) -> None:
    (line,) = workplace.xsweep("run").splitlines()
    assert line.endswith("nothing to do: 0 of 0 jobs are done")
    assert (workplace.home / "xsweep.db").exists()
