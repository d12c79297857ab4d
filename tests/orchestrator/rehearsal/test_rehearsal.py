"""`rehearsal: true` plans the same cells and jobs, small, marked and apart from real ones."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from xsweep.db.check import check
from xsweep.db.engine import connect
from xsweep.evaluator.jobs import run_job as evaluator_job
from xsweep.evaluator.models.cross_encoder import load_cross_encoder
from xsweep.evaluator.specs import ModelSpec
from xsweep.orchestrator.plan import Plan, plan_grid
from xsweep.orchestrator.rehearsal import EVERY_STEPS, STEPS
from xsweep.orchestrator.rehearsal.models import TOKENIZERS, family_of, write_model
from xsweep.orchestrator.settings import Settings
from xsweep.trainer.train import run_job as trainer_job

SWEEPS = Path(__file__).resolve().parents[3] / "sweeps"
SMALL = """\
name: trial
rehearsal: true
backbones:
  - {id: FacebookAI/roberta-base, label: RoBERTa, group: base}
teachers:
  triples:    {signal: labels, source: "irds:msmarco-passage/train"}
  rankzephyr: {signal: ranking, order: rank, depth: 50, run: absent.run,
               md5: c37b78874d4893a00566ab40aa453c56}
objectives:
  bce:     {teachers: triples}
  adr_mse: {teachers: rankzephyr, batch_queries: 1}
seeds: [12]
training: {collection: irds:msmarco-passage/train, steps: 200000, warmup_steps: 5000, lr: 1e-5,
           batch_queries: 32}
validation: {collection: irds:nano-beir/nq, every_steps: 5000, depth: 100}
evaluation:
  suites: [in-domain]
  first_stage: {splade: {model: {id: naver/splade-v3-distilbert}}, label: SPLADE-v3}
  depth: 1000
resources: {train: {gpus: 1}, evaluate: {gpus: 0.5}}
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("rehearsal")
    return Settings(
        home=folder / ".xsweep",
        database="",
        store=str(folder / "store"),
        ray_address=None,
        data_home=folder / "data",
    )


@pytest.fixture(scope="module")
def planned(settings: Settings) -> Plan:
    return plan_grid(SWEEPS / "rehearsal.yaml", settings)


def test_a_rehearsal_has_as_many_jobs_as_the_study_and_shares_none(
    planned: Plan, settings: Settings
) -> None:
    study = plan_grid(SWEEPS / "full_grid.yaml", settings)
    assert planned.kinds == study.kinds
    assert len(planned.jobs) == 4080
    assert [cell.name for cell in planned.cells] == [cell.name for cell in study.cells]
    assert not {job.identity for job in planned.jobs} & {job.identity for job in study.jobs}


def test_every_job_is_marked_and_reserves_one_core(planned: Plan) -> None:
    for job in planned.jobs:
        assert job.spec["rehearsal"] is True
        assert job.labels["rehearsal"] is True
        assert job.resources == {"cpus": 1, "gpus": 0}


def test_trainings_take_a_few_steps_at_high_rates_with_the_losses_of_the_study(
    planned: Plan,
) -> None:
    trainings = [job for job in planned.jobs if job.kind == "train"]
    assert {job.spec["optimisation"]["steps"] for job in trainings} == {STEPS}
    assert {job.spec["validation"]["every_steps"] for job in trainings} == {EVERY_STEPS}
    rates = Counter(round(job.spec["optimisation"]["lr"], 9) for job in trainings)
    assert rates == {7e-3: 4 * 6 * 3, 1e-2: 5 * 6 * 3}
    assert len({job.spec["objective"]["name"] for job in trainings}) == 6


def test_the_name_of_a_rehearsal_ends_in_rehearsal(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "trial.yaml").write_text(SMALL)
    assert plan_grid(tmp_path / "trial.yaml", settings).name == "trial-rehearsal"
    assert plan_grid(SWEEPS / "rehearsal.yaml", settings).name == "rehearsal"


def test_rehearsal_false_changes_no_plan(settings: Settings, tmp_path: Path) -> None:
    text = (SWEEPS / "full_grid.yaml").read_text()
    (tmp_path / "a.yaml").write_text(text + "rehearsal: false\n")
    (tmp_path / "b.yaml").write_text(text)
    one, other = (plan_grid(tmp_path / name, settings).jobs for name in ("a.yaml", "b.yaml"))
    assert [replace(job, labels={}) for job in one] == [replace(job, labels={}) for job in other]


@pytest.mark.parametrize("family", TOKENIZERS)
def test_models_of_each_family_score_pairs(family: str, tmp_path: Path) -> None:
    name = {"modernbert": "jhu-clsp/ettin-encoder-17m"}.get(family, f"somebody/{family}-base")
    assert family_of(name) == family
    write_model(tmp_path / "model", name, family=name, head="none")
    model, tokenizer = load_cross_encoder(ModelSpec(folder=str(tmp_path / "model")), seed=1)
    assert model.config.model_type.replace("-v2", "") == family
    pairs = tokenizer(["bona lu"] * 2, ["kite rana", "zo"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**pairs).logits[:, 0]
    assert logits.isfinite().all()
    assert logits[0] != logits[1]


@pytest.mark.parametrize("family", TOKENIZERS)
def test_a_model_is_written_the_same_every_time(family: str, tmp_path: Path) -> None:
    """Another vocabulary would change every score."""
    for folder in "ab":
        write_model(tmp_path / folder, "somebody/model", family=family, head="score")
    a, b = ({file.name: file.read_bytes() for file in (tmp_path / each).iterdir()} for each in "ab")
    assert a == b


def test_weights_depend_on_the_name_alone(tmp_path: Path) -> None:
    for folder, name in (("a", "BERT-Base"), ("b", "BERT-Base"), ("c", "MiniLM-L12")):
        write_model(tmp_path / folder, name, family="bert", head="none")
    a, b, c = ((tmp_path / each / "model.safetensors").read_bytes() for each in "abc")
    assert a == b != c


@pytest.mark.slow(20)
def test_a_rehearsal_fills_every_cell_and_every_format_marks_it(guest) -> None:
    (guest.folder / "trial.yaml").write_text(SMALL)
    output = guest.command("plan", "trial.yaml")
    assert "there is no forecast" in output
    guest.command("submit", "trial.yaml", "--no-start")
    guest.xsweep("run")
    status = guest.command("status")
    assert "trial-rehearsal" in status
    assert "rehearsal: tiny random models" in status
    engine = connect(f"sqlite:///{guest.home}/xsweep.db")
    assert check(engine) == []
    engine.dispose()
    report = json.loads(guest.command("report", "--format", "json"))
    assert report["rehearsal"] is True
    # 2 runs and the first stage on 3 collections
    assert len(report["places"]) == 9
    assert all(place["mean"] is not None and not place["unfinished"] for place in report["places"])
    for format in ("text", "markdown", "latex", "html"):
        assert "REHEARSAL" in guest.command("report", "--format", format)
    assert guest.command("report", "--format", "csv").startswith("rehearsal,name,")


@pytest.mark.slow(3)
@pytest.mark.parametrize(
    ("sweep", "training", "changes"),
    [
        ("ettin_recipe", "Ettin-17M recipe published s12", []),
        ("ettin_recipe", "Ettin-68M infonce best s12", []),
        ("ettin_recipe", "Ettin-68M kl_div lists s12", []),
        # 10 documents of a query in place of 50 for five teachers to score
        (
            "llm_teachers",
            "Ettin-150M distill_ranknet mean s12",
            ["teachers.rankzephyr.depth=10"],
        ),
    ],
)
def test_a_training_of_the_recipes_is_rehearsed_from_its_data_to_its_model(
    settings: Settings, tmp_path: Path, sweep: str, training: str, changes: list[str]
) -> None:
    text = (SWEEPS / f"{sweep}.yaml").read_text()
    (tmp_path / f"{sweep}.yaml").write_text(text)
    (tmp_path / "full_grid.yaml").write_text((SWEEPS / "full_grid.yaml").read_text())
    (tmp_path / "small.yaml").write_text(
        f"{{extends: {sweep}.yaml, name: small, rehearsal: true, validation: null, "
        "evaluation: {collections: apidocs/test}}"
    )
    plan = plan_grid(tmp_path / "small.yaml", settings, changes)
    summary = _run(plan, f"train {training}", tmp_path)
    assert summary["steps"] == STEPS
    assert summary["final_loss"] > 0


@pytest.mark.slow(3)
def test_a_decoder_is_rehearsed_as_one_and_its_adapters_are_trained(
    settings: Settings, tmp_path: Path
) -> None:
    decoder = SMALL.replace("FacebookAI/roberta-base, label: RoBERTa", "Qwen/Qwen3-0.6B, label: Q")
    (tmp_path / "grid.yaml").write_text(decoder.replace("steps: 2", "lora: {rank: 2}, steps: 2"))
    summary = _run(plan_grid(tmp_path / "grid.yaml", settings), "train Q bce triples s12", tmp_path)
    assert summary["steps"] == STEPS


def _run(plan: Plan, name: str, folder: Path) -> dict:
    """Run a training of a plan after what it needs; returns its summary."""
    jobs = {job.identity: job for job in plan.jobs}
    folders: dict[str, Path] = {}

    def run(identity: str) -> Path:
        if identity not in folders:
            job = jobs[identity]
            inputs = {role: run(parent) for role, parent in job.parents.items()}
            folders[identity] = folder / identity[:12]
            folders[identity].mkdir()
            run_job = trainer_job if job.kind == "train" else evaluator_job
            run_job(job.kind, job.spec, inputs, folders[identity])
        return folders[identity]

    (identity,) = (job.identity for job in plan.jobs if job.name == name)
    return json.loads((run(identity) / "summary.json").read_text())
