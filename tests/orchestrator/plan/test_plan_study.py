"""The study and its variants, planned with no data at hand: every count worked out by hand.

C corpora are tokenised by each backbone's own tokenizer: 13 of BEIR, 13 of NanoBEIR, 5 of LoTTE,
Robust04, and MS MARCO, which trainings and the in-domain sets share. Candidates are made for the 22
test collections and for the 13 that select checkpoints.
"""

from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from xsweep.orchestrator.forecast.cost import forecast
from xsweep.orchestrator.forecast.cost_model import GPUS, disk_bytes, training_pairs
from xsweep.orchestrator.plan import Plan, plan_grid
from xsweep.orchestrator.settings import Settings

SWEEPS = Path(__file__).resolve().parents[3] / "sweeps"
CORPORA = 13 + 13 + 5 + 1 + 1
CANDIDATES = 22 + 13


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("study")
    return Settings(
        home=folder / ".xsweep", database="", store="", ray_address=None, data_home=folder / "data"
    )


@cache
def planned(name: str, settings: Settings) -> Plan:
    return plan_grid(SWEEPS / f"{name}.yaml", settings)


def identities(plan: Plan, kind: str) -> set[str]:
    return {job.identity for job in plan.jobs if job.kind == kind}


@pytest.mark.parametrize(
    ("name", "prepare", "train", "evaluate"),
    [
        ("full_grid", 9 * CORPORA + CANDIDATES, 9 * 6 * 3, (9 * 6 * 3 + 1) * 22),
        ("modernbert", CORPORA + CANDIDATES, 6 * 3, (6 * 3 + 1) * 22),
        ("scaling", 6 * CORPORA + CANDIDATES, 6 * 6 * 3, (6 * 6 * 3 + 1) * 22),
        ("bm25_top100", 9 * CORPORA + CANDIDATES, 9 * 6 * 3, (9 * 6 * 3 + 1) * 22),
        ("same_negatives", 9 * CORPORA + CANDIDATES, 9 * 5 * 3, (9 * 5 * 3 + 1) * 22),
        # NanoBEIR and MS MARCO; both two-stage rows start from the three models of InfoNCE.
        ("two_stage", 14 + 13 + 3, 4 * 3, (4 * 3 + 1) * 3),
        # NanoBEIR, MS MARCO and 5 of BEIR, with 2 tokenizers; 7 test collections.
        ("single_gpu", 2 * (13 + 1 + 5) + 13 + 7, 2 * 6, (2 * 6 + 1) * 7),
    ],
)
def test_a_sweep_has_its_jobs(
    name: str, prepare: int, train: int, evaluate: int, settings: Settings
) -> None:
    kinds = {"prepare": prepare, "train": train, "evaluate": evaluate}
    assert planned(name, settings).kinds == kinds
    assert not planned(name, settings).skipped


def test_the_mini_study_is_tested_elsewhere_without_another_training(
    settings: Settings, real_data: Path
) -> None:
    settings = replace(settings, data_home=real_data)
    here, elsewhere = (planned(f"mini_study{name}", settings) for name in ("", "_transfer"))
    # Rows of the first stage and of the teacher beside those of 3 depths, 7 objectives, 3 seeds.
    assert (here.kinds["train"], here.kinds["evaluate"]) == (63, 63 + 2)
    assert elsewhere.kinds["evaluate"] == 4 * (63 + 2)
    assert identities(here, "train") == identities(elsewhere, "train")


def test_the_study_is_162_trainings_and_3564_evaluations_of_them(settings: Settings) -> None:
    study = planned("full_grid", settings)
    assert study.kinds["train"] == len(study.cells) == 162
    systems = Counter(job.labels["system"] for job in study.jobs if job.kind == "evaluate")
    assert systems == {"run": 3564, "first_stage": 22}
    assert len(study.jobs) == 4080


def test_the_page_of_the_study_states_the_forecast(settings: Settings) -> None:
    found = forecast(planned("full_grid", settings).jobs, GPUS["H100"], devices=8)
    page = " ".join((SWEEPS.parent / "docs" / "study.md").read_text().split())
    hours, low, high = (
        round(found.total_s / 3600 * times) for times in (1, 1 / found.factor, found.factor)
    )
    assert f"about {hours} H100 hours, between {low} and {high}, on 8 cards" in page
    assert f"{found.wall_s / 3600:.0f} hours" in page
    kept = sum(disk_bytes(planned("full_grid", settings).jobs).values())
    assert f"{kept / 1e9:.0f} GB of results" in page
    assert f"Trainings are {found.seconds['train'] / found.total_s:.0%} of it" in page


def test_the_two_groups_have_the_settings_of_the_study(settings: Settings) -> None:
    seen = set()
    for job in planned("full_grid", settings).jobs:
        if job.kind == "train":
            how = job.spec["optimisation"]
            labels = job.labels
            assert (how["steps"], how["warmup_steps"], how["weight_decay"]) == (200_000, 5_000, 0)
            seen.add((labels["group"], labels["objective"], how["lr"], how["batch_queries"]))
    pairs, lists = ("bce", "hinge", "margin_mse"), ("distill_ranknet", "adr_mse")
    assert seen == {
        *(("base", name, 1e-5, 32) for name in pairs),
        *(("mini", name, 7e-6, 64) for name in pairs),
        ("base", "infonce", 1e-5, 4),
        ("mini", "infonce", 7e-6, 8),
        *((group, name, lr, 1) for group, lr in (("base", 1e-5), ("mini", 7e-6)) for name in lists),
    }


def test_other_evaluations_share_all_trainings_and_scaling_shares_four_backbones(
    settings: Settings,
) -> None:
    study, bm25, scaling = (
        planned(name, settings) for name in ("full_grid", "bm25_top100", "scaling")
    )
    assert identities(bm25, "train") == identities(study, "train")
    assert not identities(bm25, "evaluate") & identities(study, "evaluate")
    assert len(identities(scaling, "train") & identities(study, "train")) == 4 * 6 * 3
    # The first stages' rows are the same, too.
    assert len(identities(scaling, "evaluate") & identities(study, "evaluate")) == 72 * 22 + 22


def test_equal_negatives_means_the_same_lists_for_every_objective(settings: Settings) -> None:
    found = {
        (
            job.spec["teacher"]["source"]["file"]["md5"],
            job.spec["teacher"]["depth"],
            (job.spec["teacher"]["negatives"] or 0) + 1
            if job.spec["teacher"]["negatives"]
            else job.spec["teacher"]["list_size"],
        )
        for job in planned("same_negatives", settings).jobs
        if job.kind == "train"
    }
    assert found == {("c37b78874d4893a00566ab40aa453c56", 50, 8)}


def test_two_stages_start_from_the_models_of_the_first_row(settings: Settings) -> None:
    jobs = {job.name: job for job in planned("two_stage", settings).jobs if job.kind == "train"}
    for seed in (12, 13, 14):
        first = jobs[f"train ELECTRA-Base infonce colbertv2 s{seed}"]
        for loss in ("ranknet", "adr_mse"):
            second = jobs[f"train ELECTRA-Base two_stage_{loss} rankzephyr s{seed}"]
            assert second.parents["start"] == first.identity
            assert second.spec["optimisation"]["steps"] * 32 >= 3 * 10_000
        assert "start" not in jobs[f"train ELECTRA-Base single_ranknet rankzephyr s{seed}"].parents


def test_tuning_tries_each_pair_of_rate_and_batch_once_and_runs_the_winners(
    settings: Settings,
) -> None:
    plan = planned("tuning", settings)
    # 13 corpora of NanoBEIR and MS MARCO, with 2 tokenizers; 1 test collection; a search and a run
    # for each backbone beside its trials.
    assert plan.kinds == {
        "prepare": 2 * 14 + 13 + 1,
        "train": 2 * 4 * 2 + 2,
        "search": 2,
        "evaluate": 2 + 1,
    }
    found = Counter(
        (
            job.spec["backbone"]["id"],
            job.spec["optimisation"]["lr"],
            job.spec["optimisation"]["batch_queries"],
        )
        for job in plan.jobs
        if job.kind == "train" and job.spec["trial"]
    )
    backbones = ("microsoft/MiniLM-L12-H384-uncased", "bert-base-uncased")
    rates, batches = (1e-5, 7e-5, 3e-6, 7e-6), (32, 64)
    assert found == {(b, r, n): 1 for b in backbones for r in rates for n in batches}
    searches = {job.identity: job for job in plan.jobs if job.kind == "search"}
    for run in [job for job in plan.jobs if job.kind == "train" and not job.spec["trial"]]:
        assert run.spec["optimisation"]["steps"] == 125_000
        assert run.spec["searched"] == ["batch_queries", "lr"]
        assert len(searches[run.parents["search"]].parents) == 8


def test_a_training_has_the_candidates_and_tokens_of_all_validation_sets(
    settings: Settings,
) -> None:
    run = next(job for job in planned("full_grid", settings).jobs if job.kind == "train")
    roles = {"tokens", "validation", "validation_tokens"}
    roles |= {f"validation{tokens}_{n}" for tokens in ("", "_tokens") for n in range(2, 14)}
    assert set(run.parents) == roles
    assert len(run.spec["validation"]["further"]) == 12


def given_runs(folder: Path) -> Path:
    """The full grid with the user's own first-stage runs."""
    variant = folder / "given.yaml"
    text = (SWEEPS / "full_grid.yaml").read_text()
    stage = text[text.index("{splade:") : text.index(", label: SPLADE")]
    assert text.count(stage) == 2
    variant.write_text(text.replace(stage, '{runs: "${data_home}/splade-v3"'))
    return variant


def test_missing_runs_are_planned_with_and_listed(settings: Settings, tmp_path: Path) -> None:
    assert not planned("full_grid", settings).absent
    home = replace(settings, data_home=tmp_path)
    before = plan_grid(given_runs(tmp_path), home)
    assert len(before.absent) == CANDIDATES
    run = tmp_path / "splade-v3" / "robust04.run.gz"
    assert before.absent[str(run)] == "the first stage's TREC run of 'robust04'"

    run.parent.mkdir()
    run.write_bytes(b"q 0 d 1 1.0 splade\n")
    after = plan_grid(given_runs(tmp_path), home)
    assert len(after.absent) == CANDIDATES - 1
    assert identities(after, "train") == identities(before, "train")
    assert len(identities(after, "evaluate") - identities(before, "evaluate")) == 162 + 1


def test_a_learned_first_stage_reserves_the_resources_of_teachers(settings: Settings) -> None:
    gpus = Counter(
        (job.spec["type"], job.resources["gpus"])
        for job in planned("full_grid", settings).jobs
        if job.kind == "prepare"
    )
    assert gpus == {("candidates", 1): CANDIDATES, ("tokens", 0): 9 * CORPORA}


def test_the_recipe_of_the_ettin_rerankers_is_one_epoch_at_each_size(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    plan = planned("ettin_recipe", settings)
    # NanoBEIR, 13 of BEIR and MS MARCO, with 6 tokenizers, and their own texts, of which three
    # sizes read a part as well.
    prepare = 6 * (13 + 13 + 1) + 6 + 3 + (13 + 3) + 13
    assert plan.kinds == {"prepare": prepare, "train": 6 + 3 * 5, "evaluate": (21 + 1) * 16}
    assert len(plan.absent) == 2  # data sets without a commit
    pairs, lrs = {}, {}
    for job in plan.jobs:
        if job.kind == "train":
            how, size = job.spec["optimisation"], job.labels["backbone"]
            documents = training_pairs(job.spec) // (how["steps"] * how["batch_queries"])
            pairs[size, job.labels["objective"]] = how["steps"], how["batch_queries"] * documents
            lrs[size] = how["lr"]
            assert how["warmup_steps"] == pytest.approx(0.03 * how["steps"], rel=0.01)
    recipe = {size: step for (size, objective), (_, step) in pairs.items() if objective == "recipe"}
    sizes = [f"Ettin-{size}" for size in ("17M", "32M", "68M", "150M", "400M", "1B")]
    assert [recipe[size] for size in sizes] == [1024, 512, 256, 192, 256, 512]
    assert [lrs[size] for size in sizes] == [2.4e-4, 1.2e-4, 3e-5, 1.5e-5, 7e-6, 3e-6]
    for (size, objective), (steps, step) in pairs.items():
        assert step == recipe[size]
        rows = 143_393_475 if objective == "recipe" else 64 * 502_939
        assert 0 <= steps * step - rows < 2 * step
    assert forecast(plan.jobs, GPUS["H100"], devices=8).total_s > 0


def test_seven_teachers_have_the_same_lists(settings: Settings) -> None:
    plan = planned("llm_teachers", settings)
    prepare = (13 + 13 + 1) + (13 + 3) + 13 + 1  # the lists, as candidates of four teach jobs
    trainings, rows = 7 * 3, 7 * 3 + 1 + 4
    assert plan.kinds == {
        "prepare": prepare,
        "teach": 4,
        "train": trainings,
        "evaluate": rows * 16,
    }
    jobs = {job.identity: job for job in plan.jobs}
    lists = set()
    for job in plan.jobs:
        if job.kind == "teach":
            lists.add(jobs[job.parents["candidates"]].spec["first_stage"]["file"]["md5"])
        elif job.kind == "train" and job.labels["teacher"] in ("rankzephyr", "labels"):
            lists.add(job.spec["teacher"]["source"]["file"]["md5"])
    assert lists == {"c37b78874d4893a00566ab40aa453c56"}
    mean = next(job for job in plan.jobs if job.labels.get("teacher") == "mean")
    parts = mean.spec["teacher"]["source"]["parts"]
    assert [part["type"] for part in parts] == ["run", "teach", "teach", "teach", "teach"]
    scored = [jobs[mean.parents[part["role"]]].name for part in parts[1:]]
    assert [name.split()[1] for name in scored] == [
        "cross-encoder",
        "mxbai-rerank-large-v2",
        "Qwen3-Reranker-4B",
        "bge-reranker-v2-gemma",
    ]
    found = forecast(plan.jobs, GPUS["H100"], devices=8)
    assert 0 < found.seconds["teach"] < found.seconds["train"]
