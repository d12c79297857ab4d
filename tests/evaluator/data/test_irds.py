import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from xsweep.errors import DataError
from xsweep.evaluator.data import irds, load_collection
from xsweep.evaluator.data.irds import fetch, home_of, scored_docs, sources
from xsweep.evaluator.data.suites import SUITES, licence, suite
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
def test_missing_files_are_a_data_error_at_once_offline(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'vaswani' cannot be read from .*nor downloaded"):
        load_collection(IrdsSpec(name="x", id="vaswani", home=str(tmp_path)))


def test_a_set_without_scoreddocs_is_a_data_error_with_a_remedy(real_data: Path) -> None:
    home = str(real_data / "ir_datasets_home")
    with pytest.raises(DataError, match="has no scoreddocs: use BM25 or give a run"):
        scored_docs(IrdsSpec(name="x", id="cranfield", home=home))


def test_concurrent_mirrors_of_a_home_follow_links_to_folders(tmp_path: Path) -> None:
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
    assert not list(mirrored.rglob(".*")), "no draft remains"
    # A new file is found.
    (home / "new.txt").write_text("new")
    assert (irds._mirror(home) / "new.txt").read_text() == "new"


def _spec(dataset: str, home: Path | None = None) -> IrdsSpec:
    return IrdsSpec(name=dataset, id=dataset, home=str(home) if home else None)


@pytest.mark.parametrize(
    ("dataset", "names"),
    [
        ("beir/scifact/test", ["scifact"]),
        ("beir/webis-touche2020/v2", ["webis-touche2020/v2"]),
        ("beir/cqadupstack/gis", ["cqadupstack"]),
        ("nano-beir/nq", ["nq/docs", "nq/qrels", "nq/queries"]),
        ("lotte/science/test/forum", ["source"]),
        ("disks45/nocr/trec-robust-2004", ["docs", "robust04-qrels", "robust04-queries"]),
        ("msmarco-passage/dev/small", ["collectionandqueries"]),
        (
            "msmarco-passage/trec-dl-2019/judged",
            ["collectionandqueries", "trec-dl-2019/qrels", "trec-dl-2019/queries"],
        ),
        (
            "msmarco-passage-v2/trec-dl-2022/judged",
            ["passages", "trec-dl-2022/qrels", "trec-dl-2022/queries"],
        ),
        ("vaswani", ["main"]),
        (
            "msmarco-passage/trec-dl-hard",
            [
                *("collectionandqueries", "trec-dl-2019/queries", "trec-dl-2020/queries"),
                "trec-dl-hard/qrels",
            ],
        ),
        (
            "clinicaltrials/2021/trec-ct-2021",
            [f"docs/2021/{part}" for part in range(1, 6)]
            + ["trec-ct-2021/qrels", "trec-ct-2021/queries"],
        ),
        (
            "cord19/trec-covid",
            ["docs/2020-07-16/metadata", "trec-covid/qrels", "trec-covid/queries"],
        ),
        (
            "clinicaltrials/2017/trec-pm-2017",
            ["docs/2017", "trec-pm-2017/qrels", "trec-pm-2017/queries"],
        ),
    ],
)
def test_a_data_set_needs_its_documents_queries_and_qrels(dataset: str, names: list[str]) -> None:
    assert [source.name for source in sources(_spec(dataset))] == names


def test_every_collection_of_every_suite_has_files_with_sizes_and_a_licence_note() -> None:
    for name in SUITES:
        for spec in suite(name):
            found = sources(spec)
            assert found, spec.id
            assert all(source.how for source in found), spec.id
            assert not licence(spec.id).startswith("see "), spec.id
            unknown = [source.name for source in found if not source.size_bytes]
            assert unknown in ([], ["docs"]), "only licensed documents have no published size"


def test_files_are_found_where_ir_datasets_looks_for_them(real_data: Path) -> None:
    home = real_data / "ir_datasets_home"
    for dataset in ("beir/scifact/test", "cranfield", "vaswani", "msmarco-passage/trec-dl-hard"):
        for source in sources(_spec(dataset, home)):
            assert source.present, source
            assert source.size_bytes == source.path.stat().st_size
    missing = sources(_spec("beir/nq", home))
    assert [(source.present, source.md5) for source in missing] == [
        (False, "d4d3d2e48787a744b6f6e691ff534307")
    ]


def test_the_home_is_the_specs_or_the_environments(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path))
    assert home_of(_spec("vaswani")) == tmp_path
    assert home_of(_spec("vaswani", tmp_path / "own")) == tmp_path / "own"


def test_an_unlisted_family_is_a_data_error() -> None:
    with pytest.raises(DataError, match="lists no files of 'nothing/at-all'"):
        sources(_spec("nothing/at-all"))


def test_documents_under_an_agreement_are_a_data_error_with_instructions(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"disks45.* is missing\. .*agreements .*NIST"):
        fetch(_spec("disks45/nocr/trec-robust-2004", tmp_path))


@pytest.mark.usefixtures("_no_network")
def test_offline_fetching_is_a_data_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'vaswani' cannot be read .*nor downloaded"):
        fetch(_spec("vaswani", tmp_path))


def test_present_files_are_counted_without_network(real_data: Path) -> None:
    assert fetch(_spec("cranfield", real_data / "ir_datasets_home")) == 1400
