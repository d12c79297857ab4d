"""Where every number came from: the jobs behind a report, with their code, data and files."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from db.results import Cell, ParentResult

SHORT = 12
"""Digits of an identity or commit: enough for `xsweep explain`."""


class JobFacts(NamedTuple):
    """One job with an accepted result, as a reader can check it."""

    identity: str
    name: str
    code: str
    made: str
    """When and on what."""
    data: tuple[str, ...]
    """The data that the job names, with their checksums or versions."""
    folder: str
    """Below the store's root."""
    manifest: str
    """SHA-256 of the folder's manifest, which holds those of its files."""


def jobs_behind(cells: Iterable["Cell"]) -> list[JobFacts]:
    """The evaluations and the jobs that they were made from, each once, by name."""
    found: dict[str, JobFacts] = {}
    for cell in cells:
        behind: list[Cell | ParentResult] = [cell, *cell.parents_summary.values()]
        for job in behind:
            if job.provenance and job.identity not in found:
                found[job.identity] = JobFacts(
                    identity=job.identity,
                    name=job.name,
                    code=code_of(job.provenance),
                    made=_made(job.provenance),
                    data=tuple(dict.fromkeys(data_of(job.provenance.get("spec", {})))),
                    folder=job.folder,
                    manifest=job.manifest_sha256,
                )
    return sorted(found.values(), key=lambda job: (job.name, job.identity))


def code_of(provenance: Mapping[str, Any]) -> str:
    """`0123456789ab with local changes`; the version where the code was no git tree."""
    source = provenance.get("source") or {}
    if commit := source.get("commit", ""):
        return commit[:SHORT] + (" with local changes" if source.get("dirty") else "")
    return f"xsweep {provenance.get('xsweep', 'unknown')}"


def data_of(spec: Any) -> Iterator[str]:
    """The files, folders, packages and data sets in a spec: `triples.tsv md5 4d99...`."""
    if isinstance(spec, list):
        for each in spec:
            yield from data_of(each)
    if not isinstance(spec, dict):
        return
    location = spec.get("path") or spec.get("folder")
    sums = [f"{kind} {spec[kind]}" for kind in ("md5", "sha256") if spec.get(kind)]
    if isinstance(location, str):
        name = PurePath(location).name
        yield " ".join([name, *(sums or ["without a declared checksum"])])
    elif spec.get("source") == "irds":
        yield f"ir_datasets {spec.get('id')}"
    elif spec.get("source") == "apidocs":
        versions = ", ".join(f"{name} {v}" for name, v in (spec.get("versions") or {}).items())
        yield f"{spec.get('name')} ({versions or 'of what is installed'})"
    elif spec.get("package"):
        yield f"package {spec['package']} {spec.get('version') or ''}".rstrip()
    elif isinstance(spec.get("id"), str):
        yield f"{spec['id']} {spec.get('revision') or ''}".rstrip()
    for value in spec.values():
        yield from data_of(value)


def _made(provenance: Mapping[str, Any]) -> str:
    hardware = provenance.get("hardware") or {}
    on = ", ".join(hardware.get("gpus") or []) or hardware.get("cpu") or ""
    when = str(provenance.get("started", ""))
    torch = (provenance.get("packages") or {}).get("torch")
    parts = [when, on, f"torch {torch}" if torch else "", provenance.get("precision") or ""]
    return ", ".join(filter(None, parts))
