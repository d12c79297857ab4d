import socket
from pathlib import Path

import ir_datasets
import pytest

from xsweep.errors import DataError
from xsweep.evaluator.data.irds import fetch, home_of, sources
from xsweep.evaluator.data.suites import SUITES, licence, suite
from xsweep.evaluator.specs import IrdsSpec


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XSWEEP_HOME", str(tmp_path_factory.getbasetemp() / "home"))


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


def test_documents_under_an_agreement_are_not_downloaded_but_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"disks45.* is missing\. .*agreements .*NIST"):
        fetch(_spec("disks45/nocr/trec-robust-2004", tmp_path))


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("_no_network")
def test_offline_fetching_ends_at_once_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'vaswani' cannot be read .*nor downloaded"):
        fetch(_spec("vaswani", tmp_path))


def test_what_is_here_is_read_without_network(real_data: Path) -> None:
    assert fetch(_spec("cranfield", real_data / "ir_datasets_home")) == 1400


def test_licences_go_by_the_longest_name() -> None:
    assert licence("beir/scifact/test").startswith("claims CC BY")
    assert "beir-cellar" in licence("beir/nq")
    assert licence("antique/test") == "see https://ir-datasets.com/antique.html"
    assert "antique/test" in ir_datasets.registry
