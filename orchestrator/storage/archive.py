"""Sweeps as archives: a folder to publish, and to import into another database.

`sweep.json` holds grid and jobs, `results.jsonl.gz` a line per accepted result with its summary,
provenance and per-query scores, `files/` the result folders as they are in the store, `report/` the
tables; a manifest with checksums of everything is written last. Token stores stay out: they are
large, save work and nothing else, and any database makes them anew.

An archive as one file: a folder packed into .tar.gz or .zip, and safely unpacked again.

Results as Parquet, for pandas, polars and DuckDB.
"""

import gzip
import io
import json
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from xsweep.db.jobs import NewJob
from xsweep.errors import ConfigError, DataError
from xsweep.evaluator.data.files import MANIFEST, checksum, read_manifest, write_manifest
from xsweep.evaluator.provenance import without_places
from xsweep.orchestrator.storage.store import Store

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from xsweep.db.results import Cell
    from xsweep.db.transfer import ImportCount, StoredSweep


FORMATS = {".tar.gz": "gztar", ".tgz": "gztar", ".zip": "zip"}
"""Endings of file names, and what shutil calls them."""


def ending_of(path: Path) -> str | None:
    """The ending that says that a path is one file; None for a folder."""
    return next((ending for ending in FORMATS if path.name.endswith(ending)), None)


@contextmanager
def to_pack(path: Path) -> Iterator[Path]:
    """A folder to fill: the path itself or, where its name says so, one that is packed into it.

    A reader sees the whole file or none. Raises ConfigError where the file is there already.
    """
    ending = ending_of(path)
    if ending is None:
        yield path
        return
    if path.exists():
        raise ConfigError(f"{path} is there already: give a new name")
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    root = path.name.removesuffix(ending)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{root}-") as work:
        yield Path(work, root)
        draft = shutil.make_archive(str(Path(work, "packed")), FORMATS[ending], work, root)
        Path(draft).replace(path)


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The folder of an archive; a packed one is unpacked to a temporary place.

    Raises DataError where the file is damaged or a name in it leads out of its folder.
    """
    ending = ending_of(path)
    if ending is None or path.is_dir():
        yield path
        return
    kind = FORMATS[ending]
    with tempfile.TemporaryDirectory(prefix="xsweep-import-") as work:
        try:
            # of a zip file it leaves out by itself what leads out
            shutil.unpack_archive(path, work, kind, filter=None if kind == "zip" else "data")
        except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{path}: cannot be unpacked ({error}): get it again") from error
        folders = [each for each in Path(work).iterdir() if each.is_dir()]
        if len(folders) != 1:
            raise DataError(f"{path}: not an archive of xsweep: it holds {len(folders)} folders")
        yield folders[0]


LABELS = ("system", "backbone", "group", "objective", "teacher", "seed", "collection")


def write_parquet(folder: Path, cells: "Sequence[Cell]", tidy_csv: str) -> None:
    """Write `results.parquet`, the lines of results.csv, and `per_query.parquet`.

    The latter has a row per evaluation, measure and query: the evaluation's identity and labels,
    `measure`, `query_id` and `score` (float64).
    """
    import pandas as pd

    results = pd.read_csv(
        io.StringIO(tidy_csv),
        float_precision="round_trip",
        keep_default_na=False,  # a system may be called NA
        na_values=[""],
    )
    results.to_parquet(folder / "results.parquet", index=False)
    scores = [
        pd.DataFrame(
            {"identity": cell.identity}
            | {label: cell.labels.get(label) for label in LABELS}
            | {"measure": measure, "query_id": cell.query_ids, "score": scores_Q}
        )
        for cell in cells
        for measure, scores_Q in cell.scores.items()
    ]
    pd.concat(scores).to_parquet(folder / "per_query.parquet", compression="zstd", index=False)


SCHEMA = "xsweep.archive/1"


REPORTS = {"text": "report.txt", "csv": "results.csv", "latex": "table.tex", "html": "report.html"}


def export_sweep(
    engine: "Engine",
    store: Store,
    sweep: str,
    out: Path,
    *,
    only_job: str | None = None,
    models: bool = True,
    runs: bool = True,
) -> dict[str, int]:
    """Write a sweep's finished jobs to a new folder; returns what was written, by kind of job.

    `only_job` (an identity) limits it to a run with its evaluations and all that they came from.
    Without `models` or `runs` the files of trainings or evaluations stay out; their figures do
    not. Raises ConfigError where the folder is not empty or nothing is done, DataError where a
    result's files differ from their manifest.
    """
    from xsweep.db.transfer import load_sweep

    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty: give a new folder")
    out = out.absolute()
    stored = load_sweep(engine, sweep)
    chosen = _chosen(stored, only_job)
    if not chosen:
        raise ConfigError(f"nothing of sweep {sweep!r} is done yet: there is nothing to export")
    out.mkdir(parents=True, exist_ok=True)
    kinds: dict[str, int] = {}
    with gzip.open(out / "results.jsonl.gz", "wt", encoding="utf-8") as lines:
        for job in chosen:
            result = stored.results[job.identity]
            source = store.fetch(result.folder)
            with_files = {"train": models, "search": models, "evaluate": runs}.get(job.kind, True)
            if with_files:
                _copy(source, out / "files" / job.kind / job.identity, result.manifest_sha256)
            line = {"identity": job.identity, **asdict(result), "files": with_files}
            line["provenance"] = without_places(result.provenance)
            line["scores"] = _scores(source)
            lines.write(json.dumps(line) + "\n")
            kinds[job.kind] = kinds.get(job.kind, 0) + 1
    grid = _grid_without_places(stored.grid, chosen)
    content: dict[str, Any] = {"schema": SCHEMA, "name": stored.name, "grid": grid}
    content["jobs"] = [without_places(asdict(job)) for job in chosen]
    (out / "sweep.json").write_text(json.dumps(content, indent=1) + "\n")
    (out / "grid.yaml").write_text(grid)
    (out / "README.md").write_text(_readme(stored.name, chosen))
    if only_job is None:
        _write_reports(engine, sweep, out / "report")
    write_manifest(out)
    return kinds


def import_sweep(
    engine: "Engine", store: Store, archive: Path, *, name: str | None = None
) -> "ImportCount":
    """Take over an archive's results, files first; what is done here already stays as it is.

    Raises DataError where the archive or a file in it is not what its manifest says.
    """
    from xsweep.db.transfer import StoredResult, import_results

    read_manifest(archive)
    try:
        content = json.loads((archive / "sweep.json").read_text())
        if content["schema"] != SCHEMA:
            raise DataError(f"{archive}: schema {content['schema']}, this version reads {SCHEMA}")
        for job in content["jobs"]:
            job.pop("priority", None)  # archives of older versions give all jobs the same
        jobs = [NewJob(**job) for job in content["jobs"]]
        lines = list(_lines(archive / "results.jsonl.gz"))
        grid, title = content["grid"], name or content["name"]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise DataError(f"{archive}: not an archive of xsweep ({problem})") from problem
    by_identity = {job.identity: job for job in jobs}
    seal = checksum(archive / MANIFEST)[:12]
    results: dict[str, StoredResult] = {}
    for line in lines:
        job = by_identity[line["identity"]]
        folder = f"jobs/{job.kind}/{job.identity[:2]}/{job.identity}/imported-{seal}"
        if line.pop("files"):
            source = archive / "files" / job.kind / job.identity
            _copy(source, store.resolve(folder), line["manifest_sha256"])
            store.publish(folder)
        del line["identity"]
        results[job.identity] = StoredResult(**{**line, "folder": folder})
    owner = f"import of {archive.name} ({seal})"
    return import_results(engine, name=title, grid=grid, jobs=jobs, results=results, owner=owner)


def _chosen(stored: "StoredSweep", only_job: str | None) -> list[NewJob]:
    """The done jobs, without token stores and without the edges to them."""
    tokens = {job.identity for job in stored.jobs if job.spec.get("type") == "tokens"}
    done = [job for job in stored.jobs if job.identity in stored.results]
    wanted = {job.identity for job in done} - tokens
    if only_job is not None:
        wanted &= _relatives(stored.jobs, only_job)
    return [
        replace(
            job,
            parents={role: parent for role, parent in job.parents.items() if parent not in tokens},
        )
        for job in done
        if job.identity in wanted
    ]


def _relatives(jobs: list[NewJob], identity: str) -> set[str]:
    """The job, what was computed from it, and all that these came from."""
    found = {identity}
    found |= {job.identity for job in jobs if identity in job.parents.values()}
    for job in reversed(jobs):
        if job.identity in found:
            found |= set(job.parents.values())
    return found


def _grid_without_places(grid: str, jobs: list[NewJob]) -> str:
    """The grid's text, of whose absolute paths the last part is left."""
    paths = {path for job in jobs for path in _paths(job.spec) if path in grid}
    for path in sorted(paths, key=len, reverse=True):
        grid = grid.replace(path, PurePath(path).name)
    return grid


def _paths(value: Any) -> Iterator[str]:
    """The absolute paths in a spec, and the folders right above them."""
    if isinstance(value, str) and value.startswith("/"):
        yield value
        above = PurePath(value).parent
        if len(above.parts) > 2:
            yield str(above)
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _paths(each)


def _copy(source: Path, target: Path, manifest_sha256: str) -> None:
    """Copy a result folder; verified against the seal that the database accepted."""
    if not (source / MANIFEST).is_file():
        raise DataError(f"{source}: the result's files are not there; export without them")
    if checksum(source / MANIFEST) != manifest_sha256:
        raise DataError(f"{source / MANIFEST}: not the manifest that was accepted")
    listed = read_manifest(source)["files"]
    for name in listed:
        path = Store(target).resolve(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, path)
    # The manifest last: a folder that has one is whole.
    shutil.copyfile(source / MANIFEST, target / MANIFEST)


def _scores(folder: Path) -> dict[str, Any]:
    path = folder / "per_query.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _write_reports(engine: "Engine", sweep: str, folder: Path) -> None:
    from xsweep.db.results import load_cells
    from xsweep.orchestrator.report import load_report, render

    folder.mkdir(parents=True, exist_ok=True)
    try:
        found = load_report(engine, sweep)
    except ConfigError as problem:  # no evaluation is done yet: the jobs are worth keeping still
        (folder / "report.txt").write_text(f"{problem}\n")
        return
    for format, name in REPORTS.items():
        (folder / name).write_text(render(found, format), encoding="utf-8")
    write_parquet(folder, load_cells(engine, sweep), render(found, "csv"))


def _readme(name: str, jobs: list[NewJob]) -> str:
    runs = [job for job in jobs if job.kind == "train"]
    return "\n".join(
        [
            f"# The sweep {name}",
            "",
            "`grid.yaml` is what was asked for, `report/` the tables, `results.jsonl.gz` every",
            "result with its provenance and per-query scores, `files/` the folders themselves,",
            "`manifest.json` the SHA-256 of each file. `xsweep import FOLDER` takes all of it over",
            "into another database. Models load in sentence-transformers' `CrossEncoder`:",
            "",
            "| run | folder |",
            "|---|---|",
            *(f"| {job.name} | files/train/{job.identity}/model |" for job in runs),
            "",
        ]
    )
