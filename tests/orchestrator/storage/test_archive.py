"""Archives: an exported sweep is imported unchanged into another database."""

import csv
import gzip
import json
import random
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from disks import run_on_a_small_disk
from finished import OWNER, copy_of, finish_one, run_all, submit_small
from gridtext import write_grid
from pyarrow import parquet
from reports import report_text
from sqlalchemy import Engine
from tiny import GRID, write_collection
from typer.testing import CliRunner

from xsweep.db import jobs
from xsweep.db.check import check
from xsweep.db.engine import connect
from xsweep.db.results import load_cells
from xsweep.db.status import list_jobs, summary
from xsweep.errors import ConfigError, DataError
from xsweep.evaluator.data.files import write_manifest
from xsweep.orchestrator.cli import app
from xsweep.orchestrator.plan import plan_grid
from xsweep.orchestrator.settings import Settings
from xsweep.orchestrator.storage.archive import export_sweep, import_sweep, packing, unpacking
from xsweep.orchestrator.storage.store import Store


@pytest.fixture(scope="module")
def finished_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database and a store in which the small grid is done."""
    folder = tmp_path_factory.mktemp("finished")
    engine = submit_small(folder)
    assert run_all(engine, folder / "store") == 19
    engine.dispose()
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "study" / "store"


@pytest.fixture
def done(tmp_path: Path, finished_folder: Path) -> Engine:
    return copy_of(finished_folder, tmp_path / "study")[0]


@pytest.fixture
def elsewhere(tmp_path: Path) -> tuple[Engine, Path]:
    """Another database and its store."""
    place = tmp_path / "elsewhere"
    (place / "store").mkdir(parents=True)
    return connect(f"sqlite:///{place / 'xsweep.db'}", create=True), place / "store"


def figures(engine: Engine) -> list[tuple]:
    return [
        (cell.identity, cell.labels, cell.means, cell.query_ids, cell.scores["nDCG@10"].tobytes())
        for cell in load_cells(engine, "small")
    ]


def test_a_sweep_that_was_exported_and_imported_gives_the_same_report(
    done: Engine, store: Path, tmp_path: Path, elsewhere: tuple[Engine, Path]
) -> None:
    kinds = export_sweep(done, Store(store), "small", tmp_path / "out")
    # The token store stays behind: 3 of 4 preparations.
    assert kinds == {"prepare": 3, "teach": 1, "train": 6, "evaluate": 8}
    there, other_store = elsewhere
    found = import_sweep(there, Store(other_store), tmp_path / "out")
    assert (found.accepted, found.known, found.refused) == (18, 0, 0)
    assert figures(there) == figures(done)
    assert report_text(there, "small") == report_text(done, "small")
    assert check(there) == []
    assert (tmp_path / "out" / "report" / "report.txt").read_text() == report_text(done, "small")


def test_imported_files_are_in_the_folder_of_their_result(
    done: Engine, store: Path, tmp_path: Path, elsewhere: tuple[Engine, Path]
) -> None:
    export_sweep(done, Store(store), "small", tmp_path / "out")
    there, other_store = elsewhere
    import_sweep(there, Store(other_store), tmp_path / "out")
    for cell in load_cells(there, "small", kind="train"):
        weights = other_store / cell.folder / "model" / "model.safetensors"
        assert weights.read_text() == cell.identity


def test_importing_again_and_into_the_same_database_changes_nothing(
    done: Engine, store: Path, tmp_path: Path
) -> None:
    export_sweep(done, Store(store), "small", tmp_path / "out")
    before = figures(done)
    found = import_sweep(done, Store(store), tmp_path / "out")
    assert (found.accepted, found.known, found.refused) == (0, 18, 0)
    assert figures(done) == before
    assert check(done) == []


def test_a_grid_submitted_after_an_import_computes_only_what_is_new(
    done: Engine, store: Path, tmp_path: Path, elsewhere: tuple[Engine, Path]
) -> None:
    export_sweep(done, Store(store), "small", tmp_path / "out")
    there, other_store = elsewhere
    import_sweep(there, Store(other_store), tmp_path / "out")
    settings = Settings(
        home=tmp_path / "h", database="", store="", ray_address=None, data_home=None
    )
    planned = plan_grid(write_grid(tmp_path, ("[1, 2]", "[1, 2, 3]")), settings)
    jobs.add_sweep(there, name="small", grid=planned.grid, jobs=planned.jobs)
    # The token store that stayed behind, and 3 runs of seed 3 with an evaluation each.
    assert run_all(there, other_store) == 1 + 2 * 3
    assert check(there) == []


def test_an_archive_of_an_older_version_is_imported(
    done: Engine, store: Path, tmp_path: Path, elsewhere: tuple[Engine, Path]
) -> None:
    out = tmp_path / "out"
    export_sweep(done, Store(store), "small", out)
    content = json.loads((out / "sweep.json").read_text())
    content["jobs"] = [{**job, "priority": 0} for job in content["jobs"]]
    (out / "sweep.json").write_text(json.dumps(content))
    write_manifest(out)
    there, other_store = elsewhere
    assert import_sweep(there, Store(other_store), out).accepted == 18


def test_jobs_that_run_here_are_not_imported(done: Engine, store: Path, tmp_path: Path) -> None:
    export_sweep(done, Store(store), "small", tmp_path / "out")
    busy = tmp_path / "busy"
    busy.mkdir()
    engine = submit_small(busy)
    (claim,) = jobs.claim(engine, owner=OWNER, limit=1, lease_s=60)
    found = import_sweep(engine, Store(busy), tmp_path / "out")
    assert found.refused > 0
    assert found.accepted + found.refused == 18
    assert check(engine) == []
    states = {row.job_id: row.state for row in list_jobs(engine)}
    assert states[claim.job_id] == "running"
    finish_one(engine, busy, claim)
    run_all(engine, busy)
    assert {row.state for row in list_jobs(engine)} == {"done"}
    assert check(engine) == []


def test_one_run_is_exported_with_its_evaluations_and_all_ancestors(
    done: Engine, store: Path, tmp_path: Path
) -> None:
    run = next(row for row in list_jobs(done) if row.name == "train L3 margin_mse minilm s1")
    kinds = export_sweep(done, Store(store), "small", tmp_path / "out", only_job=run.identity)
    # Candidates of all three parts: the teacher's, the validation's, the evaluation's.
    assert kinds == {"prepare": 3, "teach": 1, "train": 1, "evaluate": 1}


def test_without_models_and_runs_the_scores_are_still_exported(
    done: Engine, store: Path, tmp_path: Path, elsewhere: tuple[Engine, Path]
) -> None:
    export_sweep(done, Store(store), "small", tmp_path / "out", models=False, runs=False)
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    assert not list((tmp_path / "out").rglob("run.trec.gz"))
    there, other_store = elsewhere
    import_sweep(there, Store(other_store), tmp_path / "out")
    assert figures(there) == figures(done)


def test_jobs_that_are_not_done_are_not_exported(tmp_path: Path, store: Path) -> None:
    engine = submit_small(tmp_path)
    store.mkdir(parents=True)
    with pytest.raises(ConfigError, match="no job of sweep 'small' is done yet"):
        export_sweep(engine, Store(store), "small", tmp_path / "out")
    run_all(engine, store, limit=10)
    counts = Counter(export_sweep(engine, Store(store), "small", tmp_path / "out"))
    assert counts.total() <= 10
    with gzip.open(tmp_path / "out" / "results.jsonl.gz", "rt") as lines:
        assert len(list(lines)) == counts.total()


def test_a_damaged_archive_is_refused_and_changes_nothing(
    done: Engine, store: Path, tmp_path: Path, elsewhere: tuple[Engine, Path]
) -> None:
    export_sweep(done, Store(store), "small", tmp_path / "out")
    model = next((tmp_path / "out" / "files" / "train").rglob("*.safetensors"))
    model.write_bytes(b"x" * model.stat().st_size)
    there, other_store = elsewhere
    with pytest.raises(DataError, match="damaged"):
        import_sweep(there, Store(other_store), tmp_path / "out")
    assert summary(there).sweeps == []
    with pytest.raises(DataError, match="unfinished"):
        import_sweep(there, Store(other_store), tmp_path)


def test_a_folder_that_is_not_empty_is_refused(done: Engine, store: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(ConfigError, match="is not empty"):
        export_sweep(done, Store(store), "small", tmp_path / "out")


def test_results_that_were_changed_in_the_store_are_not_exported(
    done: Engine, store: Path, tmp_path: Path
) -> None:
    (cell, *_) = load_cells(done, "small", kind="train")
    manifest = store / cell.folder / "manifest.json"
    manifest.write_text(json.dumps({"files": {}}))
    with pytest.raises(DataError, match="not the manifest that was accepted"):
        export_sweep(done, Store(store), "small", tmp_path / "out")


@pytest.mark.parametrize("name", ["published.tar.gz", "published.zip"])
def test_an_archive_can_be_one_file(
    done: Engine, store: Path, tmp_path: Path, elsewhere: tuple[Engine, Path], name: str
) -> None:
    with packing(tmp_path / name) as folder:
        export_sweep(done, Store(store), "small", folder)
    assert [path.name for path in tmp_path.glob("*published*")] == [name]
    there, other_store = elsewhere
    with unpacking(tmp_path / name) as folder:
        assert import_sweep(there, Store(other_store), folder).accepted == 18
    assert figures(there) == figures(done)
    with pytest.raises(ConfigError, match="exists already"), packing(tmp_path / name):
        pass


def test_a_packed_archive_that_is_truncated_or_leads_outside_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.tar.gz").write_bytes(b"\x1f\x8b\x08")
    with (
        pytest.raises(DataError, match=r"cut\.tar\.gz: cannot be unpacked"),
        unpacking(tmp_path / "cut.tar.gz"),
    ):
        pass
    with tarfile.open(tmp_path / "out.tar.gz", "w:gz") as packed:
        packed.addfile(tarfile.TarInfo("../escaped"))
    with (
        pytest.raises(DataError, match=r"out\.tar\.gz: cannot be unpacked"),
        unpacking(tmp_path / "out.tar.gz"),
    ):
        pass
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize("name", ["../escaped", "small/../../escaped", "/{}/escaped"])
def test_names_in_a_zip_file_that_lead_outside_are_not_written(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "out.zip", "w") as packed:
        packed.writestr("small/sweep.json", "{}")
        packed.writestr(name.format(str(tmp_path).strip("/")), "x")
    with unpacking(tmp_path / "out.zip") as folder:
        assert [path.name for path in folder.parent.rglob("*")] == ["small", "sweep.json"]
        assert not (folder.parent.parent / "escaped").exists()
    assert not (tmp_path / "escaped").exists()


def test_no_path_of_the_machine_is_exported(tmp_path: Path) -> None:
    for part, seed in (("train", 3), ("test", 4)):
        write_collection(tmp_path / "data" / part, seed=seed)
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "config.json").write_text("{}")
    grid = tmp_path / "tiny.yaml"
    text = GRID.format(steps=4, objectives="infonce: {teachers: lists}, bce: {teachers: lists}")
    grid.write_text(text.replace(" test/", f" {tmp_path}/data/test/"))
    grid.write_text(grid.read_text().replace(" train/", " data/train/"))
    settings = Settings(
        home=tmp_path / "h", database="", store="", ray_address=None, data_home=None
    )
    planned = plan_grid(grid, settings)
    engine = connect(f"sqlite:///{tmp_path / 'tiny.db'}", create=True)
    jobs.add_sweep(engine, name="tiny", grid=planned.grid, jobs=planned.jobs)
    run_all(engine, tmp_path / "store")
    export_sweep(engine, Store(tmp_path / "store"), "tiny", tmp_path / "out")
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file() and path.suffix != ".parquet":
            open_ = gzip.open if path.suffix == ".gz" else open
            with open_(path, "rb") as file:
                assert str(tmp_path).encode() not in file.read(), path
    published = json.loads((tmp_path / "out" / "sweep.json").read_text())
    documents = {job["spec"]["collection"]["documents"]["path"] for job in published["jobs"]}
    assert documents == {"documents.tsv"}
    assert "documents: documents.tsv" in published["grid"]


def test_parquet_files_equal_the_csv_and_the_database(
    done: Engine, store: Path, tmp_path: Path
) -> None:
    export_sweep(done, Store(store), "small", tmp_path / "out")
    folder = tmp_path / "out" / "report"
    tidy = parquet.read_table(folder / "results.parquet").to_pylist()
    lines = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert [float(line["mean"]) for line in lines] == [row["mean"] for row in tidy]
    assert [line["name"] for line in lines] == [row["name"] for row in tidy]
    scores = parquet.read_table(folder / "per_query.parquet").to_pylist()
    cells = load_cells(done, "small")
    assert len(scores) == sum(len(cell.query_ids) for cell in cells) == 8 * 20
    last = cells[-1]
    mine = {row["query_id"]: row["score"] for row in scores if row["identity"] == last.identity}
    assert mine == dict(zip(last.query_ids, last.scores["nDCG@10"].tolist(), strict=True))


def _change(archive: Path, change: Callable[[dict, list[dict]], None]) -> None:
    """Change an archive's jobs and results and seal it again."""
    content = json.loads((archive / "sweep.json").read_text())
    with gzip.open(archive / "results.jsonl.gz", "rt") as file:
        lines = [json.loads(line) for line in file]
    change(content, lines)
    (archive / "sweep.json").write_text(json.dumps(content))
    with gzip.open(archive / "results.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    write_manifest(archive)


def _better(content: dict, lines: list[dict]) -> None:
    line = next(line for line in lines if line["scores"])
    line["scores"]["nDCG@10"]["q0"] = 1.0


def _faster(content: dict, lines: list[dict]) -> None:
    lines[0]["summary"]["pairs"] = 8


def _another_setting(content: dict, lines: list[dict]) -> None:
    next(job for job in content["jobs"] if job["kind"] == "train")["spec"]["optimisation"]["lr"] = (
        0.5
    )


def _without_result(content: dict, lines: list[dict]) -> None:
    lines.pop()


def _escape(content: dict, lines: list[dict]) -> None:
    content["jobs"][0]["name"] += "\x1b[2J"


def _greedy(content: dict, lines: list[dict]) -> None:
    content["jobs"][0]["resources"] = {"cpus": -1}


def _endless(content: dict, lines: list[dict]) -> None:
    content["jobs"][0]["cost"] = float("inf")


def _typeless(content: dict, lines: list[dict]) -> None:
    content["jobs"][0]["resources"] = [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_greedy, "wrong spec or resources: cpus should be greater than or equal to 0, not -"),
        (_endless, "kind 'prepare' at a cost of inf s"),
        (_typeless, "not an archive of xsweep"),
        (_better, "other figures than in results"),
        (_faster, "other figures than in results"),
        (_another_setting, "by its spec it is"),
        (_without_result, "its jobs and its results are not the same"),
        (_escape, "characters that cannot be printed"),
    ],
)
def test_an_archive_that_contradicts_itself_is_refused_whole(
    change: Callable, message: str, done: Engine, store: Path, tmp_path: Path, elsewhere: tuple
) -> None:
    export_sweep(done, Store(store), "small", tmp_path / "out")
    _change(tmp_path / "out", change)
    there, other_store = elsewhere
    with pytest.raises(DataError, match=message):
        import_sweep(there, Store(other_store), tmp_path / "out")
    assert summary(there).sweeps == []
    assert list(other_store.iterdir()) == []


def test_an_archive_that_changes_cells_of_its_name_is_refused_and_copies_nothing(
    done: Engine, store: Path, tmp_path: Path
) -> None:
    export_sweep(done, Store(store), "small", tmp_path / "out")
    (tmp_path / "there").mkdir()
    there = submit_small(tmp_path / "there", ("lr: 3e-5", "lr: 5e-5"))
    other = tmp_path / "there" / "store"
    with pytest.raises(ConfigError) as refused:
        import_sweep(there, Store(other), tmp_path / "out")
    assert "changes: lr (5e-05 before, 3e-05 now) in 4 cells" in str(refused.value)
    assert str(refused.value).endswith(": import the archive under another name with --name")
    assert not other.exists()
    # L6's two trainings and their evaluations are shared, and wait here for their token store
    counts = import_sweep(there, Store(other), tmp_path / "out", name="other")
    assert (counts.accepted, counts.refused) == (14, 4)


def test_scores_without_files_must_have_the_means_of_their_summary(
    done: Engine, store: Path, tmp_path: Path, elsewhere: tuple
) -> None:
    def invent(content: dict, lines: list[dict]) -> None:
        next(line for line in lines if line["scores"])["summary"]["means"] = {"nDCG@10": 0.99}

    export_sweep(done, Store(store), "small", tmp_path / "out", models=False, runs=False)
    _change(tmp_path / "out", invent)
    with pytest.raises(DataError, match="nDCG@10 is not its scores' mean"):
        import_sweep(elsewhere[0], Store(elsewhere[1]), tmp_path / "out")


def test_the_check_of_the_store_names_every_damaged_result(
    done: Engine, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XSWEEP_HOME", str(tmp_path / "study" / ".xsweep"))
    monkeypatch.setenv("XSWEEP_STORE", str(store))
    runner = CliRunner()
    fine = runner.invoke(app, ["store", "check"])
    assert (fine.exit_code, fine.stdout) == (0, "19 results are as they were accepted.\n")
    cell = load_cells(done, "small", kind="train")[0]
    weights = store / cell.folder / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[3] ^= 1
    weights.write_bytes(content)
    found = runner.invoke(app, ["store", "check"])
    assert found.exit_code == 1
    assert found.stdout.startswith(f"{cell.name}: {weights}: damaged")
    assert "compute each again with what depends on it: xsweep redo JOB" in found.output
    # sealed again, the folder agrees with itself, but not with what the job table accepted
    write_manifest(store / cell.folder)
    found = runner.invoke(app, ["store", "check"])
    assert found.exit_code == 1
    manifest = store / cell.folder / "manifest.json"
    assert found.stdout == f"{cell.name}: {manifest}: not the manifest that was accepted\n"
    # computed again, both the training and its evaluation are as they were accepted
    preview = runner.invoke(app, ["redo", cell.name])
    results = f"2 results (0 s):\n  {cell.name}\n  {cell.name.replace('train', 'evaluate')}"
    assert preview.stdout.startswith(f"Would retire {results}")
    assert preview.stdout.endswith(f'To compute them again: xsweep redo "{cell.name}" --yes\n')
    redone = runner.invoke(app, ["redo", cell.identity[:12], "--yes"])
    assert redone.stdout.startswith(f"Retired {results}")
    assert redone.stdout.endswith("They will be computed again. Next: xsweep run\n")
    assert run_all(done, store) == 2
    fine = runner.invoke(app, ["store", "check"])
    assert (fine.exit_code, fine.stdout) == (0, "19 results are as they were accepted.\n")
    assert check(done) == []


def test_an_archive_that_is_not_there_makes_no_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XSWEEP_HOME", str(tmp_path / ".xsweep"))
    result = CliRunner().invoke(app, ["import", str(tmp_path / "nope.tar.gz")])
    assert isinstance(result.exception, DataError) or result.exit_code == 2
    assert not (tmp_path / ".xsweep" / "xsweep.db").exists()


def test_a_packed_archive_that_shrank_more_than_figures_do_is_not_unpacked(tmp_path: Path) -> None:
    large = tarfile.TarInfo("study/large")
    large.size = 1 << 40
    (tmp_path / "zeros.tar.gz").write_bytes(gzip.compress(large.tobuf()))
    with (
        zipfile.ZipFile(tmp_path / "zeros.zip", "w", zipfile.ZIP_DEFLATED) as packed,
        packed.open("study/large", "w") as file,
    ):
        file.write(bytes(4 << 20))
    for name, size in (("zeros.tar.gz", "1.1 TB"), ("zeros.zip", "4.2 MB")):
        with (
            pytest.raises(DataError, match=f"{name}: {size} when unpacked: not packed by xsweep"),
            unpacking(tmp_path / name),
        ):
            pass


ON_A_SMALL_DISK = """
import tempfile
from xsweep.errors import SetupError
from xsweep.orchestrator.storage.archive import unpacking

tempfile.tempdir = str(disk)
try:
    with unpacking(Path(sys.argv[2])):
        pass
except SetupError as error:
    print(error)
print([path.name for path in disk.iterdir()])
"""


@pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
def test_an_archive_larger_than_the_free_disk_is_not_unpacked(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"large{suffix}"
    with packing(path) as folder:
        folder.mkdir()
        (folder / "weights").write_bytes(random.Random(1).randbytes(3_000_000))
    printed = run_on_a_small_disk(ON_A_SMALL_DISK, tmp_path / "disk", str(path))
    assert printed.splitlines() == [
        f"{path}: 3.0 MB when unpacked, {tmp_path / 'disk'} has 2.1 MB free: "
        "set TMPDIR to a folder on a larger disk",
        "[]",
    ]


def test_results_that_would_fill_the_memory_are_refused(
    done: Engine, store: Path, tmp_path: Path, elsewhere: tuple
) -> None:
    export_sweep(done, Store(store), "small", tmp_path / "out")
    path = tmp_path / "out" / "results.jsonl.gz"
    path.write_bytes(gzip.compress(b" " * (8 << 20) + gzip.decompress(path.read_bytes())))
    write_manifest(tmp_path / "out")
    with pytest.raises(DataError, match=r"results\.jsonl\.gz:1: .* larger ones, than 18 jobs have"):
        import_sweep(elsewhere[0], Store(elsewhere[1]), tmp_path / "out")
