import re
from dataclasses import replace

import pytest
from job_table import counts, fail, finish, identity, new_job, run_all, states, study, submit, take
from sqlalchemy import Engine, func, select

from xsweep.db import jobs
from xsweep.db.check import check
from xsweep.db.events import history
from xsweep.db.results import load_cells
from xsweep.db.schema import Base, Job
from xsweep.db.submit import Submission
from xsweep.errors import ConfigError


def rows(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        return {
            table.name: connection.scalar(select(func.count()).select_from(table)) or 0
            for table in Base.metadata.sorted_tables
        }


def column(engine: Engine, name: str) -> dict[str, float]:
    with engine.connect() as connection:
        return dict(connection.execute(select(Job.name, getattr(Job, name))).tuples().all())


def test_jobs_without_parents_are_ready_and_others_wait(engine):
    added = submit(engine, study())
    assert added == Submission(sweep_id=added.sweep_id, new=8, shared=0, done=0, total=8)
    assert counts(engine) == {"ready": 2, "waiting": 6}


def test_submitting_again_adds_no_row_to_any_table(engine):
    submit(engine, study())
    before = rows(engine)
    again = submit(engine, study())
    assert (again.new, again.total) == (0, 8)
    assert rows(engine) == before


def test_the_order_of_the_jobs_does_not_matter(engine):
    submit(engine, study()[::-1])
    with engine.connect() as connection:
        ids = dict(connection.execute(select(Job.name, Job.id)).tuples().all())
    assert ids["tokens"] < ids["train s1"] < ids["evaluate s1 dl19"]
    assert run_all(engine)[-1].startswith("evaluate")


def test_a_larger_grid_adds_only_its_new_cells_to_the_sweep(engine):
    first = submit(engine, study(seeds=[1]))
    assert sorted(run_all(engine)) == sorted(job.name for job in study(seeds=[1]))
    larger = submit(engine, study(seeds=[1, 2]))
    assert larger == Submission(sweep_id=first.sweep_id, new=3, shared=0, done=5, total=8)
    assert sorted(run_all(engine)) == ["evaluate s2 dl19", "evaluate s2 dl20", "train s2"]


def test_two_sweeps_share_their_equal_jobs(engine):
    submit(engine, study(seeds=[1]), name="one")
    other = submit(engine, study(seeds=[1, 2]), name="two")
    assert (other.new, other.shared) == (3, 5)
    assert rows(engine)["job"] == 8
    assert counts(engine, "one") == {"ready": 2, "waiting": 3}


def test_a_preview_counts_the_same_and_writes_nothing(engine):
    submit(engine, study(seeds=[1]), name="one")
    before = rows(engine)
    foreseen = jobs.preview(engine, name="two", jobs=study())
    assert foreseen == Submission(sweep_id=None, new=3, shared=5, done=0, total=8)
    assert rows(engine) == before
    added = submit(engine, study(), name="two")
    assert (added.new, added.shared, added.done) == (3, 5, 0)


def test_a_new_child_of_a_failed_job_is_skipped_until_somebody_retries(engine):
    submit(engine, [new_job("tokens")])
    fail(engine, take(engine), "CONFIG")
    submit(engine, [new_job("tokens"), new_job("train", "tokens"), new_job("test", "train")])
    assert states(engine) == {"tokens": "failed", "train": "skipped", "test": "skipped"}
    assert jobs.retry(engine, sweep="study") == 3
    assert run_all(engine) == ["tokens", "train", "test"]


def test_a_new_child_of_a_done_job_is_ready(engine):
    submit(engine, [new_job("tokens")])
    finish(engine, take(engine))
    submit(engine, [new_job("train", "tokens")], name="other")
    assert states(engine)["train"] == "ready"


def test_the_longest_chain_behind_a_job_is_the_sum_of_its_costs(engine):
    grid = [
        new_job("tokens", cost=1),
        new_job("quick", "tokens", cost=2),
        new_job("slow", "tokens", cost=30),
        new_job("test", "slow", "quick", cost=4),
    ]
    submit(engine, grid)
    # by hand: test 4; slow 30 + 4; quick 2 + 4; tokens 1 + 34
    assert column(engine, "critical_s") == {"test": 4, "slow": 34, "quick": 6, "tokens": 35}
    submit(engine, [*grid, new_job("after", "test", cost=100)])
    assert column(engine, "critical_s")["tokens"] == 135


def test_labels_follow_the_newest_grid(engine):
    submit(engine, [new_job("test", kind="evaluate", labels={"backbone": "L6"})])
    submit(engine, [new_job("test", kind="evaluate", labels={"backbone": "MiniLM-L6"})])
    (cell,) = load_cells(engine, "study")
    assert cell.labels == {"backbone": "MiniLM-L6"}


def test_specs_are_read_back_exactly_as_submitted(engine):
    spec = {
        "lr": 1e-05,
        "big": 1e22,
        "zero": -0.0,
        "n": 1,
        "x": 1.0,
        "text": "é\u2028\"'\\",
        "no": None,
    }
    job = new_job("train")
    submit(engine, [type(job)(**(vars(job) | {"spec": spec}))])
    taken = take(engine)
    assert repr(taken.spec) == repr(spec)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([new_job("train", "nowhere")], "its parent nowhere=.* is neither submitted nor stored"),
        ([new_job("a", "b"), new_job("b", "a")], "circle: . needs . needs ."),
        ([new_job("train"), new_job("train")], "given twice"),
    ],
)
def test_an_invalid_grid_is_refused_and_writes_nothing(engine, grid, message):
    before = rows(engine)
    with pytest.raises(ConfigError, match=message):
        submit(engine, grid)
    assert rows(engine) == before


def test_the_table_refuses_an_identity_that_is_no_sha256(engine):
    job = new_job("train")
    with pytest.raises(Exception, match=r"job_identity_ck|CHECK"):
        submit(engine, [type(job)(**(vars(job) | {"identity": "short"}))])
    assert rows(engine)["job"] == 0
    assert len(identity("any")) == 64


def test_bulk_submission_of_a_few_thousand_cells(engine):
    grid = study(seeds=range(1500))
    assert submit(engine, grid).new == 2 + 3 * 1500
    before = rows(engine)
    assert submit(engine, grid).new == 0
    assert rows(engine) == before
    assert before["edge"] == 1500 + 2 * 2 * 1500


def trained(lr: float = 3e-5, seeds=(1, 2), measures=("AP",), objective: str = "bce"):
    """A training and an evaluation per seed; names of jobs, as of real ones, hold no settings."""
    cell = {"backbone": "L3", "objective": objective, "teacher": "bm25"}
    grid = [new_job("tokens", kind="prepare")]
    for seed in seeds:
        run = new_job(f"{objective} s{seed} {lr}", "tokens", labels=cell | {"seed": seed})
        spec = {"optimisation": {"lr": lr}, "seed": seed}
        grid.append(replace(run, name=f"train s{seed}", spec=spec))
        labels = cell | {"system": "run", "collection": "news", "seed": seed}
        test = new_job(f"{run.identity} {measures}", kind="evaluate", labels=labels)
        spec, parents = {"measures": list(measures)}, {"run": run.identity}
        grid.append(replace(test, name=f"evaluate s{seed}", spec=spec, parents=parents))
    return grid


CHANGED = (
    r"sweep 'study' has cells that this grid changes: lr \(3e-05 before, 5e-05 now\) in 2 cells: "
    r"L3 bce bm25 s1, L3 bce bm25 s2\..*--replace"
)


def test_a_changed_setting_under_one_name_is_refused_and_writes_nothing(engine):
    submit(engine, trained())
    before = rows(engine)
    with pytest.raises(ConfigError, match=CHANGED):
        submit(engine, trained(lr=5e-5))
    assert rows(engine) == before
    foreseen = jobs.preview(engine, name="study", jobs=trained(lr=5e-5))
    assert re.match(CHANGED, foreseen.refusal)
    assert (foreseen.new, foreseen.removed) == (4, 0)
    assert submit(engine, trained(lr=5e-5), name="other").new == 4


def test_other_seeds_of_a_cell_with_other_settings_are_refused_but_not_with_the_same(engine):
    submit(engine, trained(seeds=[1]))
    with pytest.raises(
        ConfigError, match=r"lr \(3e-05 before, 5e-05 now\) in 1 cell: L3 bce bm25 s1"
    ):
        submit(engine, trained(lr=5e-5, seeds=[2, 3]))
    assert submit(engine, trained(seeds=[2, 3])).new == 4
    assert {cell.labels["seed"] for cell in load_cells(engine, "study")} == {1, 2, 3}


def test_cells_seeds_and_a_part_of_the_grid_are_no_change(engine):
    submit(engine, trained())
    assert submit(engine, trained(seeds=[1, 2, 3])).new == 2
    assert submit(engine, trained() + trained(objective="hinge")[1:]).new == 4
    before = rows(engine)["sweep_job"]
    assert submit(engine, trained(seeds=[2])).removed == 0
    assert rows(engine)["sweep_job"] == before == 11
    assert check(engine) == []


def test_an_evaluation_with_more_measures_takes_the_place_of_the_old_one(engine):
    submit(engine, trained(seeds=[1]))
    assert len(run_all(engine)) == 3
    more = submit(engine, trained(seeds=[1], measures=["AP", "RR"]))
    assert (more.new, more.done, more.removed) == (1, 2, 1)
    (cell,) = load_cells(engine, "study")
    assert cell.state == "ready"
    assert rows(engine)["result"] == 3
    with pytest.raises(ConfigError, match=r"measures \(\['AP', 'RR'\] before, \['RR'\] now\)"):
        submit(engine, trained(seeds=[1], measures=["RR"]))
    assert check(engine) == []


def test_replace_makes_the_sweep_the_new_grid_and_keeps_results_and_grid_texts(engine):
    first = jobs.add_sweep(engine, name="study", grid="lr: 3e-5", jobs=trained(seeds=[1, 2, 3]))
    claims = jobs.claim(engine, owner="alice", limit=1, lease_s=60)
    finish(engine, claims[0])
    finish(engine, take(engine))
    running = take(engine)
    new = trained(lr=5e-5, seeds=[1, 2])
    replaced = jobs.add_sweep(engine, name="study", grid="lr: 5e-5", jobs=new, replace=True)
    # of 7 jobs the tokens stay; the sweep is the 5 jobs of the new grid
    assert (replaced.sweep_id, replaced.new, replaced.removed) == (first.sweep_id, 4, 6)
    assert counts(engine) == {"done": 1, "ready": 2, "waiting": 2}
    assert not finish(engine, running)
    assert rows(engine)["result"] == 2
    events = history(engine, sweep_id=first.sweep_id)
    assert [each.detail.get("replaced_grid") for each in events] == [None, None, "lr: 3e-5"]
    assert check(engine) == []


def test_a_replaced_grid_that_comes_back_finds_its_results_and_runs_the_rest(engine):
    submit(engine, trained())
    finish(engine, take(engine))
    finish(engine, take(engine))
    for lr in (5e-5, 3e-5):
        jobs.add_sweep(engine, name="study", grid="", jobs=trained(lr=lr), replace=True)
    assert counts(engine) == {"done": 2, "ready": 2, "waiting": 1}
    assert len(run_all(engine)) == 3
    assert check(engine) == []


def test_jobs_of_another_sweep_stay_when_one_replaces_them(engine):
    submit(engine, trained(), name="other")
    submit(engine, trained())
    jobs.add_sweep(engine, name="study", grid="", jobs=trained(lr=5e-5), replace=True)
    assert counts(engine, "other") == {"ready": 1, "waiting": 4}
    assert len(run_all(engine)) == 9
    assert check(engine) == []
