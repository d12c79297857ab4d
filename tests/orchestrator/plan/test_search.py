"""The `search:` block: its trials, its winner, and the runs that take the winner's settings."""

from collections import Counter
from pathlib import Path

import pytest
from gridtext import write_grid

from xsweep.db.jobs import NewJob
from xsweep.errors import ConfigError
from xsweep.orchestrator.plan import Plan, plan_grid
from xsweep.orchestrator.settings import Settings

CHOICES = "space: {lr: {choice: [1e-5, 3e-5]}, batch_queries: {choice: [4, 8]}}"
OWN = f"search:\n  - match: {{backbone: L6}}\n    {CHOICES}\n"
DRAWN = """\
search:
  - match: {backbone: L6}
    space: {lr: {loguniform: [1e-6, 1e-4]}, batch_queries: {uniform: [2, 16]},
            weight_decay: {uniform: [0, 0.1]}}
    samples: 3
    seed: 7
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path / ".xsweep", database="", store="", ray_address=None, data_home=None
    )


def plan(folder: Path, settings: Settings, search: str, *changes: tuple[str, str]) -> Plan:
    return plan_grid(
        write_grid(folder, ("validation:", f"{search}validation:"), *changes), settings
    )


def trials_of(planned: Plan) -> list[NewJob]:
    return [job for job in planned.jobs if "trial" in job.labels]


def named(planned: Plan, name: str) -> NewJob:
    return next(job for job in planned.jobs if job.name == name)


def test_each_combination_is_a_trial_and_every_seed_takes_the_winner(
    tmp_path: Path, settings: Settings
) -> None:
    planned = plan(tmp_path, settings, OWN)
    # 6 cells as without a search; 2 x 2 trials in the first seed, and who picks the best of them
    assert planned.kinds == {"prepare": 4, "teach": 1, "train": 6 + 4, "search": 1, "evaluate": 8}
    optimisations = [trial.spec["optimisation"] for trial in trials_of(planned)]
    assert [(each["batch_queries"], each["lr"]) for each in optimisations] == [
        (4, 1e-5),
        (4, 3e-5),
        (8, 1e-5),
        (8, 3e-5),
    ]
    assert {trial.spec["seed"] for trial in trials_of(planned)} == {1}
    search = named(planned, "search L6 infonce bm25 batch_queries lr")
    assert search.parents == {
        f"trial-{place + 1:03}": trial.identity for place, trial in enumerate(trials_of(planned))
    }
    for seed in (1, 2):
        run = named(planned, f"train L6 infonce bm25 s{seed}")
        assert run.parents["search"] == search.identity
        assert run.spec["searched"] == ["batch_queries", "lr"]
    assert "search" not in named(planned, "train L3 infonce bm25 s1").parents


def test_a_grid_without_a_search_keeps_its_identities(tmp_path: Path, settings: Settings) -> None:
    with_search = plan(tmp_path, settings, OWN)
    without = plan_grid(write_grid(tmp_path), settings)
    shared = {job.identity for job in without.jobs} & {job.identity for job in with_search.jobs}
    # all but the two runs of L6 and their evaluations
    assert len(shared) == len(without.jobs) - 4


def test_the_previous_value_of_a_searched_setting_does_not_matter(
    tmp_path: Path, settings: Settings
) -> None:
    one = plan(tmp_path, settings, OWN)
    other = plan(tmp_path, settings, OWN, ("lr: 1e-5, batch", "lr: 5e-5, batch"))
    names = [job.name for job in one.jobs if "L6" in job.name]
    assert len(names) == 4 + 1 + 2 + 2
    assert all(named(one, name).identity == named(other, name).identity for name in names)


def test_samples_lie_in_their_ranges_and_are_deterministic(
    tmp_path: Path, settings: Settings
) -> None:
    drawn = [trial.labels["trial"] for trial in trials_of(plan(tmp_path, settings, DRAWN))]
    assert len(drawn) == 3
    for each in drawn:
        assert 1e-6 <= each["lr"] <= 1e-4
        assert 2 <= each["batch_queries"] <= 16
        assert isinstance(each["batch_queries"], int)
        assert 0 <= each["weight_decay"] <= 0.1
        assert all(len(str(value).replace("-", "").lstrip("0.")) <= 9 for value in each.values())
    # written down once: another version of Ray must not draw others for the same file
    assert drawn == GOLDEN


def test_more_samples_keep_the_existing_trials(tmp_path: Path, settings: Settings) -> None:
    three = plan(tmp_path, settings, DRAWN)
    five = plan(tmp_path, settings, DRAWN.replace("samples: 3", "samples: 5"))
    assert [job.identity for job in trials_of(five)][:3] == [
        job.identity for job in trials_of(three)
    ]


def test_samples_of_choices_are_all_different(tmp_path: Path, settings: Settings) -> None:
    four = plan(tmp_path, settings, OWN + "    samples: 4\n")
    assert (
        Counter(str(trial.labels["trial"]) for trial in trials_of(four)).most_common(1)[0][1] == 1
    )
    assert len(trials_of(four)) == 4


def test_a_winner_can_be_applied_to_other_cells(tmp_path: Path, settings: Settings) -> None:
    search = OWN + "    training: {steps: 50, warmup_steps: 5}\n    apply: {group: small}\n"
    planned = plan(tmp_path, settings, search)
    takers = {job.name for job in planned.jobs if "search" in job.parents}
    assert takers == {
        f"train L3 {objective} s{seed}"
        for objective in ("infonce bm25", "margin_mse minilm")
        for seed in (1, 2)
    }
    assert {trial.spec["optimisation"]["steps"] for trial in trials_of(planned)} == {50}
    taker = named(planned, "train L3 infonce bm25 s1")
    assert taker.spec["optimisation"]["steps"] == 100
    # the tuned cell itself was not named: it keeps the grid's settings
    assert "search" not in named(planned, "train L6 infonce bm25 s1").parents


def test_the_last_search_wins(tmp_path: Path, settings: Settings) -> None:
    second = (
        "  - match: {backbone: L3, objective: infonce}\n    space: {lr: {choice: [1e-5, 2e-5]}}\n"
    )
    planned = plan(tmp_path, settings, OWN + second + "    apply: {objective: infonce}\n")
    names = {job.identity: job.name for job in planned.jobs}
    for backbone in ("L6", "L3"):
        run = named(planned, f"train {backbone} infonce bm25 s1")
        assert names[run.parents["search"]] == "search L3 infonce bm25 lr"


def test_trials_with_early_stopping_are_different_jobs(tmp_path: Path, settings: Settings) -> None:
    asha = OWN + "    asha: {grace_steps: 50, reduction: 2}\n"
    whole, pruned = (plan(tmp_path, settings, search) for search in (OWN, asha))
    ids = [{trial.identity for trial in trials_of(each)} for each in (whole, pruned)]
    assert not ids[0] & ids[1]
    assert trials_of(pruned)[0].spec["trial"] == {"asha": {"grace_steps": 50, "reduction": 2.0}}


@pytest.mark.parametrize(
    ("search", "line", "message"),
    [
        (OWN.replace("lr:", "lrr:"), 19, "'lrr' cannot be searched: did you mean 'lr'?"),
        (OWN.replace("lr:", "steps:"), 19, "'steps' cannot be searched"),
        (OWN.replace("backbone: L6", "backbone: L7"), 18, "unknown backbone 'L7'"),
        (OWN.replace("[1e-5, 3e-5]", "[1e-5, 3]"), 19, "less than 1"),
        (OWN.replace("[1e-5, 3e-5]", "[1e-5, fast]"), 19, "fast"),
        (OWN.replace("choice: [1e-5, 3e-5]", "uniform: [1e-5, 3e-5]"), 19, "give `samples`"),
        (OWN.replace("choice: [1e-5, 3e-5]", "uniform: [3e-5, 1e-5]"), 19, "first bound must be"),
        (OWN.replace("choice: [1e-5, 3e-5]", "loguniform: [0, 1]"), 19, "must be positive"),
        (OWN + "    samples: 5\n", 20, "only 4 combinations, not 5"),
        (OWN + "    asha: {grace_steps: 100}\n", 20, "have 100 steps: none could end before"),
        (OWN + "    training: {step: 5}\n", 20, "unknown key 'step'"),
        (
            OWN + "    apply: {backbone: L6, objective: margin_mse}\n",
            20,
            "no cell of the grid takes",
        ),
        (
            OWN.replace("backbone: L6", "group: small") + "    apply: {seed: 1}\n",
            18,
            "this tunes 2",
        ),
        (
            "search:\n  - {match: {seed: 1}, space: {lr: {choice: [1e-5]}}}\n",
            18,
            "one trial is no search",
        ),
    ],
)
def test_an_invalid_search_is_reported_at_its_position(
    search: str, line: int, message: str, tmp_path: Path, settings: Settings
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(tmp_path, settings, search)
    assert message in str(caught.value)
    assert f"grid.yaml:{line}:" in str(caught.value)


def test_a_single_search_needs_no_list(tmp_path: Path, settings: Settings) -> None:
    block = f"search:\n  match: {{backbone: L6}}\n  {CHOICES}\n"
    assert len(trials_of(plan(tmp_path, settings, block))) == 4


def test_a_search_needs_a_validation(tmp_path: Path, settings: Settings) -> None:
    text = write_grid(tmp_path).read_text().splitlines(keepends=True)
    kept = [line for line in text if not line.startswith("validation:")]
    (tmp_path / "grid.yaml").write_text("".join(kept) + OWN)
    with pytest.raises(ConfigError, match="the grid needs `validation:`"):
        plan_grid(tmp_path / "grid.yaml", settings)


GOLDEN = [
    {"batch_queries": 16, "lr": 6.229e-05, "weight_decay": 0.07757},
    {"batch_queries": 11, "lr": 2.821e-06, "weight_decay": 0.03002},
    {"batch_queries": 6, "lr": 1.025e-06, "weight_decay": 0.08212},
]
