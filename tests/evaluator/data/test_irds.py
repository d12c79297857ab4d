import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from xsweep.errors import DataError
from xsweep.evaluator.data import irds, load_collection
from xsweep.evaluator.data.irds import scored_docs
from xsweep.evaluator.specs import IrdsSpec


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XSWEEP_HOME", str(tmp_path_factory.getbasetemp() / "home"))


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_a_read_only_home_gives_documents_queries_and_graded_qrels(real_data: Path) -> None:
    home = real_data / "ir_datasets_home"
    before = sorted(path.name for path in (home / "cranfield").iterdir())
    collection = load_collection(IrdsSpec(name="cranfield", id="cranfield", home=str(home)))
    documents = dict(collection.documents())
    assert (len(documents), len(collection.queries), len(collection.qrels)) == (1400, 225, 225)
    assert sum(map(len, collection.qrels.values())) == 1837
    assert {grade for grades in collection.qrels.values() for grade in grades.values()} <= {
        -1,
        1,
        2,
        3,
        4,
    }
    assert collection.document_texts(["184", "1"]) == {key: documents[key] for key in ("184", "1")}
    assert sorted(path.name for path in (home / "cranfield").iterdir()) == before


def test_beir_documents_are_title_and_text(real_data: Path) -> None:
    home = str(real_data / "ir_datasets_home")
    collection = load_collection(IrdsSpec(name="scifact", id="beir/scifact/test", home=home))
    assert len(collection.queries) == 300
    (text,) = collection.document_texts(["4983"]).values()
    assert text.startswith("Microstructural development of human newborn cerebral white matter")
    with pytest.raises(DataError, match="has no document 'nobody'"):
        collection.document_texts(["nobody"])


def test_two_homes_can_be_read_in_one_process(real_data: Path, tmp_path: Path) -> None:
    first = real_data / "ir_datasets_home"
    (tmp_path / "vaswani").mkdir()
    (tmp_path / "vaswani/npl.tar.gz").symlink_to(first / "vaswani/npl.tar.gz")
    both = [
        load_collection(IrdsSpec(name=name, id=name, home=str(home)))
        for name, home in (("cranfield", first), ("vaswani", tmp_path))
    ]
    assert [len(collection.queries) for collection in both] == [225, 93]
    assert [next(collection.documents())[0] for collection in both] == ["1", "1"]


def test_unknown_ids_and_homes_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="knows no data set 'beir/nothing'"):
        load_collection(IrdsSpec(name="x", id="beir/nothing", home=str(tmp_path)))
    with pytest.raises(DataError, match="no such folder"):
        load_collection(IrdsSpec(name="x", id="cranfield", home=str(tmp_path / "none")))


@pytest.mark.usefixtures("_no_network")
def test_files_that_are_missing_offline_are_a_clear_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'vaswani' cannot be read from .*nor downloaded"):
        load_collection(IrdsSpec(name="x", id="vaswani", home=str(tmp_path)))


def test_a_set_without_scoreddocs_says_what_to_use(real_data: Path) -> None:
    home = str(real_data / "ir_datasets_home")
    with pytest.raises(DataError, match="has no scoreddocs: use BM25 or give a run"):
        scored_docs(IrdsSpec(name="x", id="cranfield", home=home))


def test_several_may_mirror_a_home_at_once_through_links_to_folders_too(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    home = tmp_path / "home"
    home.mkdir()
    (home / "linked").symlink_to(tmp_path / "elsewhere")
    for number in range(300):
        (tmp_path / "elsewhere" / f"{number}.txt").write_text(str(number))
        (home / f"{number}.txt").write_text(str(number))
    start = threading.Barrier(4)

    def mirror(_: int) -> Path:
        start.wait()
        return irds._mirror(home)

    with ThreadPoolExecutor(4) as threads:
        (mirrored,) = set(threads.map(mirror, range(4)))
    for number in range(300):
        assert (mirrored / f"{number}.txt").read_text() == str(number)
        assert (mirrored / "linked" / f"{number}.txt").read_text() == str(number)
    assert not list(mirrored.rglob(".*")), "no draft stays behind"
    # A file that came later is found; one that went is not missed.
    (home / "new.txt").write_text("new")
    assert (irds._mirror(home) / "new.txt").read_text() == "new"
