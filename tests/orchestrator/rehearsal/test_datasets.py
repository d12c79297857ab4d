"""The loaders of the real data sets read the generated ones."""

from pathlib import Path

import pytest

from xsweep.errors import ConfigError
from xsweep.evaluator.data import load_collection
from xsweep.evaluator.data.suites import SUITES
from xsweep.evaluator.specs import IrdsSpec
from xsweep.orchestrator.rehearsal.datasets import (
    DOCUMENTS,
    MSMARCO_DOCUMENTS,
    MSMARCO_QUERIES,
    QUERIES,
    write_datasets,
)

IDS = {
    name: id
    for part in ("in-domain", "beir-13", "nano-beir", "lotte-search", "robust04")
    for name, id in SUITES[part].items()
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All data sets of the study, generated once."""
    folder = tmp_path_factory.mktemp("rehearsal")
    write_datasets(folder / "irds", {*IDS.values(), "msmarco-passage/train"})
    return folder / "irds"


@pytest.fixture(autouse=True)
def _own_mirror(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XSWEEP_HOME", str(home.parent / "xsweep"))


def test_the_study_has_35_collections() -> None:
    assert len(IDS) == 3 + 13 + 13 + 5 + 1


@pytest.mark.parametrize("name", IDS)
def test_the_real_loader_reads_a_generated_collection(home: Path, name: str) -> None:
    collection = load_collection(IrdsSpec(name=name, id=IDS[name], home=str(home)))
    documents = dict(collection.documents())
    shared = name in SUITES["in-domain"]
    assert len(documents) == (MSMARCO_DOCUMENTS if shared else DOCUMENTS)
    assert len(collection.queries) == len(collection.qrels) == QUERIES
    for query, grades in collection.qrels.items():
        assert grades.keys() <= documents.keys()
        assert len(grades) == 2
        words = set(collection.queries[query].split())
        texts = [set(documents[doc].split()) for doc in grades]
        assert all(words & text for text in texts), (
            "a query shares words with its relevant documents"
        )


def test_the_training_set_shares_passages_but_no_queries_with_the_test_set(home: Path) -> None:
    train, dev = (
        load_collection(IrdsSpec(name=id, id=f"msmarco-passage/{id}", home=str(home)))
        for id in ("train", "dev/small")
    )
    assert len(train.queries) == len(train.qrels) == MSMARCO_QUERIES
    assert not train.queries.keys() & dev.queries.keys()
    assert dict(train.documents()) == dict(dev.documents())


def test_existing_data_sets_are_kept(home: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file()}
    write_datasets(home, set(IDS.values()))
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_an_unknown_family_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot generate the data set 'cranfield'"):
        write_datasets(tmp_path, ["cranfield"])
