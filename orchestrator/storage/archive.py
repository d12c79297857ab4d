"""Archives: a sweep as a folder or one packed file, to publish and to import elsewhere.

`sweep.json` holds grid and jobs, `results.jsonl.gz` a line per accepted result with its summary,
provenance and per-query scores, `files/` the result folders as in the store, `models/` models with
full cards, under names for people, `report/` the tables; a manifest with checksums is written last.
Token stores are left out: they are large, and any database recreates them.
"""

import gzip
import io
import json
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import accumulate
from math import inf, isclose, nan
from pathlib import Path, PurePath
from statistics import fmean
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from xsweep.db.jobs import NewJob
from xsweep.errors import ConfigError, DataError, SetupError, field_errors, first_line
from xsweep.evaluator.data.files import MANIFEST, checksum, link, read_manifest, write_manifest
from xsweep.evaluator.provenance import without_places
from xsweep.orchestrator.formatting import data_size
from xsweep.orchestrator.storage.store import Store

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from xsweep.db.results import Cell
    from xsweep.db.transfer import ImportCount, StoredSweep
    from xsweep.trainer.card import Score

SCHEMA = "xsweep.archive/1"
MOST_SHRUNK = 100
"""Largest ratio of unpacked to packed size."""
PACKED = {".tar.gz": "gztar", ".tgz": "gztar", ".zip": "zip"}
"""Suffixes of packed archives, and shutil's names of their formats."""
REPORTS = {"text": "report.txt", "csv": "results.csv", "latex": "table.tex", "html": "report.html"}
LABELS = ("system", "backbone", "group", "objective", "teacher", "seed", "collection")
README = """# The sweep {name}

`grid.yaml` is the submitted grid, `report/` the tables, `results.jsonl.gz` every result with its
provenance and per-query scores, `files/` the result folders, `manifest.json` the SHA-256 of each
file. `xsweep import FOLDER` imports all of it into another database. Models load in
sentence-transformers' `CrossEncoder`:

| run | folder |
|---|---|
"""


@contextmanager
def packing(path: Path) -> Iterator[Path]:
    """Give a folder to fill: `path` itself or, by its suffix, one that is packed into it.

    The file appears complete or not at all. Raises ConfigError where it exists already.
    """
    suffix = _packed_suffix(path)
    if suffix is None:
        yield path
        return
    if path.exists():
        raise ConfigError(f"{path} exists already: give a new name")
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    root = path.name.removesuffix(suffix)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{root}-") as work:
        yield Path(work, root)
        draft = shutil.make_archive(str(Path(work, "packed")), PACKED[suffix], work, root)
        Path(draft).replace(path)


@contextmanager
def unpacking(path: Path) -> Iterator[Path]:
    """Give the folder of an archive; a packed one is unpacked to a temporary folder.

    Raises DataError where the file is damaged or contains a name outside its folder.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such archive")
    suffix = _packed_suffix(path)
    if suffix is None or path.is_dir():
        yield path
        return
    kind = PACKED[suffix]
    with tempfile.TemporaryDirectory(prefix="xsweep-import-") as work:
        try:
            if kind == "zip":  # shutil skips names outside the folder itself
                with zipfile.ZipFile(path) as packed:
                    _check_space(path, sum(each.file_size for each in packed.infolist()), work)
                shutil.unpack_archive(path, work, kind)
            else:
                with tarfile.open(path) as packed:
                    for size_bytes in accumulate(each.size for each in packed):
                        _check_space(path, size_bytes, work)
                    packed.extractall(work, filter="data")
        except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{path}: cannot be unpacked ({error}): copy it again") from error
        folders = [each for each in Path(work).iterdir() if each.is_dir()]
        if len(folders) != 1:
            raise DataError(f"{path}: not an archive of xsweep: it holds {len(folders)} folders")
        yield folders[0]


def _check_space(path: Path, unpacked_bytes: int, folder: str) -> None:
    if unpacked_bytes > _largest_bytes(path):
        raise DataError(f"{path}: {data_size(unpacked_bytes)} when unpacked: not packed by xsweep")
    if unpacked_bytes > (free_bytes := shutil.disk_usage(folder).free):
        raise SetupError(
            f"{path}: {data_size(unpacked_bytes)} when unpacked, {Path(folder).parent} has "
            f"{data_size(free_bytes)} free: set TMPDIR to a folder on a larger disk"
        )


def _packed_suffix(path: Path) -> str | None:
    return next((suffix for suffix in PACKED if path.name.endswith(suffix)), None)


def export_sweep(
    engine: "Engine",
    store: Store,
    sweep: str,
    out: Path,
    *,
    only_job: str | None = None,
    models: bool = True,
    runs: bool = True,
    about: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, int]:
    """Write a sweep's finished jobs to a new folder; returns their number by kind.

    `only_job` (an identity) limits it to a run with its evaluations and all their ancestors.
    Without `models` or `runs` the files of trainings or evaluations are left out, not their scores.
    `about` has fields of `trainer.card.Model` for all cards, such as `license`.
    Raises ConfigError where the folder is not empty or nothing is done, DataError where a result's
    files differ from their manifest.
    """
    from xsweep.db.transfer import load_sweep

    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty: give a new folder")
    out = out.absolute()
    stored = load_sweep(engine, sweep)
    exported = _exported_jobs(stored, only_job)
    if not exported:
        raise ConfigError(f"no job of sweep {sweep!r} is done yet: nothing to export")
    out.mkdir(parents=True, exist_ok=True)
    with gzip.open(out / "results.jsonl.gz", "wt", encoding="utf-8") as lines:
        for job in exported:
            result = stored.results[job.identity]
            source = store.fetch(result.folder)
            with_files = {"train": models, "search": models, "evaluate": runs}.get(job.kind, True)
            if with_files:
                _copy(source, out / "files" / job.kind / job.identity, result.manifest_sha256)
            line = {"identity": job.identity, **asdict(result), "files": with_files}
            line["provenance"] = without_places(result.provenance)
            scores = source / "per_query.json"
            line["scores"] = json.loads(scores.read_text()) if scores.is_file() else {}
            lines.write(json.dumps(line) + "\n")
    grid = _grid_without_places(stored.grid, exported)
    content: dict[str, Any] = {"schema": SCHEMA, "name": stored.name, "grid": grid}
    content["jobs"] = [without_places(asdict(job)) for job in exported]
    (out / "sweep.json").write_text(json.dumps(content, indent=1) + "\n")
    (out / "grid.yaml").write_text(grid)
    names = _write_models(stored, exported, out, about) if models else {}
    titles = {job.identity: job.name for job in exported}
    rows = [f"| {titles[each]} | models/{name} |\n" for each, name in names.items()]
    (out / "README.md").write_text(README.format(name=stored.name) + "".join(rows))
    if only_job is None:
        _write_reports(engine, sweep, out / "report")
    write_manifest(out)
    return dict(Counter(job.kind for job in exported))


def import_sweep(
    engine: "Engine", store: Store, archive: Path, *, name: str | None = None
) -> "ImportCount":
    """Import an archive's results, files first; jobs that are done here keep their results.

    Raises DataError, and has changed nothing, where the archive or a file in it differs from its
    manifest, an identity from its job's spec, or a result from the sealed files; ConfigError where
    it changes cells of a sweep of its name.
    """
    from pydantic import TypeAdapter

    from xsweep.db.submit import REMEDY, preview
    from xsweep.db.transfer import StoredResult, import_results

    read_manifest(archive)
    try:
        content = json.loads((archive / "sweep.json").read_text())
        if content["schema"] != SCHEMA:
            raise DataError(f"{archive}: schema {content['schema']}, this version reads {SCHEMA}")
        for job in content["jobs"]:
            job.pop("priority", None)  # archives of older versions give all jobs the same
        jobs = TypeAdapter(list[NewJob]).validate_python(content["jobs"])
        lines = list(_read_results(archive / "results.jsonl.gz", len(jobs)))
        grid, title = content["grid"], name or content["name"]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise DataError(f"{archive}: not an archive of xsweep ({problem})") from problem
    by_identity = {job.identity: job for job in jobs}
    if by_identity.keys() != {line.get("identity") for line in lines}:
        raise DataError(f"{archive}: its jobs and its results are not the same")
    for job in jobs:
        _check_job(job, archive)
    for line in lines:
        _check_result(line, archive / "files" / by_identity[line["identity"]].kind)
    if refusal := preview(engine, name=title, jobs=jobs).refusal:
        remedy = ": import the archive under another name with --name"
        raise ConfigError(refusal.removesuffix(REMEDY) + remedy)
    seal = checksum(archive / MANIFEST)[:12]
    results: dict[str, StoredResult] = {}
    for line in lines:
        job = by_identity[line.pop("identity")]
        folder = f"jobs/{job.kind}/{job.identity[:2]}/{job.identity}/imported-{seal}"
        if line.pop("files"):
            source = archive / "files" / job.kind / job.identity
            _copy(source, store.resolve(folder), line["manifest_sha256"])
            store.publish(folder)
        results[job.identity] = StoredResult(**{**line, "folder": folder})
    owner = f"import of {archive.name} ({seal})"
    return import_results(engine, name=title, grid=grid, jobs=jobs, results=results, owner=owner)


def _read_results(path: Path, jobs: int) -> Iterator[dict[str, Any]]:
    """Yield a packed file's lines, one per job; refuse one that would fill the memory."""
    left_bytes = _largest_bytes(path)
    with gzip.open(path, "rb") as file:
        for number in range(1, jobs + 2):
            line = file.readline(left_bytes + 1)
            left_bytes -= len(line)
            if not line:
                return
            if number > jobs or left_bytes < 0:
                raise DataError(
                    f"{path}:{number}: more results, or larger ones, than {jobs} jobs have"
                )
            yield json.loads(line)


def _largest_bytes(path: Path) -> int:
    """Return the size to which a packed file may unpack: figures and weights shrink far less."""
    return MOST_SHRUNK * path.stat().st_size + (1 << 20)


def _check_job(job: NewJob, archive: Path) -> None:
    """Raise DataError unless a job's identity follows from its spec and parents."""
    from pydantic import TypeAdapter, ValidationError

    from xsweep.evaluator.jobs import SPECS
    from xsweep.orchestrator.grid.schema import Need
    from xsweep.orchestrator.plan.identity import canonical, identity_of, significant
    from xsweep.trainer.specs import SearchSpec, TrainSpec

    texts = [job.name, *map(str, job.labels.values())]
    if not all(text.isprintable() for text in texts):
        raise DataError(f"{archive}: a job's name has characters that cannot be printed: {texts}")
    models = {**SPECS, "train": TypeAdapter(TrainSpec), "search": TypeAdapter(SearchSpec)}
    if job.kind not in models or not 0 <= job.cost < inf:
        raise DataError(f"{archive}: {job.name}: kind {job.kind!r} at a cost of {job.cost} s")
    try:
        spec = models[job.kind].validate_python(job.spec)
        found = identity_of(job.kind, canonical(significant(spec)), job.parents)
        Need.model_validate(
            {key.removesuffix("_bytes"): need for key, need in job.resources.items()}
        )
    except ValidationError as error:
        problem = f"wrong spec or resources: {field_errors(error)}"
        raise DataError(f"{archive}: {job.name}: {problem}") from error
    if found != job.identity:
        raise DataError(
            f"{archive}: {job.name} has the identity {job.identity[:12]}, by its spec it is "
            f"{found[:12]}: the archive was changed"
        )


def _check_result(line: dict[str, Any], folder: Path) -> None:
    """Raise DataError where a result's figures differ from its sealed files or from each other."""
    given = line["summary"], line["scores"]
    if line["files"]:
        source = folder / line["identity"]
        names = ("summary.json", "per_query.json")
        sealed = [source / name for name in names]
        found = tuple(json.loads(p.read_text()) if p.is_file() else {} for p in sealed)
        if found != given:
            raise DataError(f"{source}: other figures than in results.jsonl.gz: it was changed")
    for name, mean in given[0].get("means", {}).items():
        if not isclose(mean, fmean(given[1].get(name, {"": nan}).values()), abs_tol=1e-9):
            raise DataError(f"{folder}: {line['identity'][:12]}: {name} is not its scores' mean")


def _exported_jobs(stored: "StoredSweep", only_job: str | None) -> list[NewJob]:
    """Return the done jobs, without token stores and without the edges to them."""
    tokens = {job.identity for job in stored.jobs if job.spec.get("type") == "tokens"}
    exported = stored.results.keys() - tokens
    if only_job is not None:
        exported &= _relatives(stored.jobs, only_job)
    return [
        replace(
            job,
            parents={role: parent for role, parent in job.parents.items() if parent not in tokens},
        )
        for job in stored.jobs
        if job.identity in exported
    ]


def _relatives(jobs: list[NewJob], identity: str) -> set[str]:
    """Return a job, its children, and all ancestors of these."""
    found = {identity} | {job.identity for job in jobs if identity in job.parents.values()}
    for job in reversed(jobs):
        if job.identity in found:
            found |= set(job.parents.values())
    return found


def _grid_without_places(grid: str, jobs: list[NewJob]) -> str:
    """Return the grid's text with absolute paths reduced to their last part."""
    paths = {path for job in jobs for path in _paths(job.spec) if path in grid}
    for path in sorted(paths, key=len, reverse=True):
        grid = grid.replace(path, PurePath(path).name)
    return grid


def _paths(value: Any) -> Iterator[str]:
    """Yield the absolute paths in a spec, and their parent folders."""
    if isinstance(value, str) and value.startswith("/"):
        yield value
        parent = PurePath(value).parent
        if len(parent.parts) > 2:
            yield str(parent)
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _paths(each)


def _write_models(
    stored: "StoredSweep", exported: Sequence[NewJob], out: Path, about: Mapping[str, Any]
) -> dict[str, str]:
    """Fill `models/`: a folder per exported model with a full card; their names by identity."""
    from xsweep.trainer.card import Model, collective_card, model_card, model_names
    from xsweep.trainer.specs import TrainSpec

    made = [job for job in exported if (out / "files/train" / job.identity / "model").is_dir()]
    names = model_names({job.identity: job.labels for job in made if "trial" not in job.labels})
    models = []
    for identity, name in names.items():
        result = stored.results[identity]
        model = Model(
            spec=TrainSpec.model_validate(result.provenance["spec"]),
            summary=result.summary,
            provenance=result.provenance,
            name=name,
            scores=_test_scores(stored, identity),
            **about,
        )
        folder = out / "models" / name
        shutil.copytree(out / "files/train" / identity / "model", folder, copy_function=link)
        (folder / "README.md").unlink(missing_ok=True)  # a link: the sealed file stays as it is
        (folder / "README.md").write_text(model_card(model), encoding="utf-8")
        models.append(model)
    if len(models) > 1:
        card = collective_card(stored.name, models)
        (out / "models" / "README.md").write_text(card, encoding="utf-8")
    return names


def _test_scores(stored: "StoredSweep", run: str) -> "tuple[Score, ...]":
    from xsweep.evaluator.specs import EvaluateSpec
    from xsweep.trainer.card import Score

    means = {
        job.identity: stored.results[job.identity].summary.get("means", {})
        for job in stored.jobs
        if job.kind == "evaluate" and job.identity in stored.results
    }
    alone = {
        job.labels.get("collection"): means[job.identity]
        for job in stored.jobs
        if job.identity in means and job.labels.get("system") == "first_stage"
    }
    return tuple(
        Score(
            collection=EvaluateSpec.model_validate(job.spec).collection,
            first_stage=job.labels["first_stage"],
            depth=job.labels["depth"],
            measure=measure,
            value=mean,
            before=alone.get(job.labels["collection"], {}).get(measure),
        )
        for job in stored.jobs
        if job.parents.get("run") == run
        for measure, mean in means.get(job.identity, {}).items()
    )


def push_models(export: Path, repository: str, *, private: bool = False) -> str:
    """Upload an export's models to the Hugging Face Hub; returns the commit's address.

    A single model goes to the repository's root. Raises ConfigError where there is none or the
    name is wrong, SetupError where the Hub refuses or does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    folders = [path.parent for path in export.glob("models/*/README.md")]
    if not folders:
        raise ConfigError("no model is exported: nothing to upload")
    source, hub = folders[0] if len(folders) == 1 else export / "models", HfApi()
    try:
        hub.create_repo(repository, private=private or None, exist_ok=True)
        message = "Upload by xsweep"
        return hub.upload_folder(
            repo_id=repository, folder_path=source, commit_message=message
        ).commit_url
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub {repository}: {first_line(error)}") from error
    except Exception as error:  # it raises those of its HTTP library, too
        raise SetupError(
            f"{repository}: the Hub at {hub.endpoint} did not take the models "
            f"({first_line(error)}): log in with `hf auth login`, or set HF_TOKEN"
        ) from error


def _copy(source: Path, target: Path, manifest_sha256: str) -> None:
    """Copy a result folder, verified against the checksum that the database accepted."""
    if not (source / MANIFEST).is_file():
        raise DataError(f"{source}: the result's files are missing; export without them")
    if checksum(source / MANIFEST) != manifest_sha256:
        raise DataError(f"{source / MANIFEST}: not the manifest that was accepted")
    for name in read_manifest(source)["files"]:
        path = Store(target).resolve(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, path)
    # The manifest last: a folder that has one is complete.
    shutil.copyfile(source / MANIFEST, target / MANIFEST)


def _write_reports(engine: "Engine", sweep: str, folder: Path) -> None:
    from xsweep.db.results import load_cells
    from xsweep.orchestrator.report import load_report, render

    folder.mkdir(parents=True, exist_ok=True)
    try:
        report = load_report(engine, sweep)
    except ConfigError as problem:  # no evaluation is done yet; the jobs are exported all the same
        (folder / "report.txt").write_text(f"{problem}\n")
        return
    for format, name in REPORTS.items():
        (folder / name).write_text(render(report, format), encoding="utf-8")
    _write_parquet(folder, load_cells(engine, sweep), render(report, "csv"))


def _write_parquet(folder: Path, cells: "Sequence[Cell]", tidy_csv: str) -> None:
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
