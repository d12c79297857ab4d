import ir_datasets
import pytest

from xsweep.errors import ConfigError
from xsweep.evaluator.data.suites import SIZES, SUITES, averaged_as, dataset, licence, size, suite


def test_every_collection_of_every_suite_is_one_that_ir_datasets_knows() -> None:
    known = set(ir_datasets.registry)
    for name in SUITES:
        for spec in suite(name):
            assert spec.id in known, (name, spec.id)
            dataset = ir_datasets.registry[spec.id]
            assert dataset.has_queries(), spec.id
            assert dataset.has_qrels(), spec.id


def test_the_suites_have_the_sizes_of_the_study() -> None:
    sizes = {name: len(suite(name)) for name in SUITES}
    assert sizes["in-domain"] + sizes["beir-13"] + sizes["lotte-search"] + sizes["robust04"] == 22
    assert (sizes["nano-beir"], sizes["beir"]) == (13, 13 + 12)


def test_the_specs_have_the_given_home() -> None:
    assert suite("robust04", home="/data")[0].home == "/data"


def test_cqadupstack_counts_as_one_in_beirs_mean() -> None:
    names = {averaged_as(name) for name in SUITES["beir"]}
    assert len(names) == 14
    assert averaged_as("cqadupstack-gis") == "cqadupstack"
    assert averaged_as("beir/cqadupstack/gis") == "cqadupstack"
    assert averaged_as("scifact") == "scifact"


def test_an_unknown_suite_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'beir-13'"):
        suite("beir13")


def test_the_longest_prefix_gives_the_licence() -> None:
    assert licence("beir/scifact/test").startswith("claims CC BY")
    assert "beir-cellar" in licence("beir/nq")
    assert licence("antique/test") == "see https://ir-datasets.com/antique.html"
    assert "antique/test" in ir_datasets.registry


def test_the_longest_prefix_gives_the_size_and_every_suite_has_one() -> None:
    assert size("msmarco-passage/dev/small") == SIZES["msmarco-passage/dev/small"]
    assert size("msmarco-passage/trec-dl-hard") == SIZES["msmarco-passage"]
    assert size("antique/test") is None
    unknown = {name for name in SUITES for spec in suite(name) if size(spec.id) is None}
    assert unknown == {"trec-dl-later", "beir"}, "MS MARCO v2 and CQADupStack have no sizes here"


def test_the_sets_of_beir_whose_queries_are_documents_drop_identical_ids_in_every_suite() -> None:
    specs = [spec for name in SUITES for spec in suite(name)]
    parts = [name for name in SUITES["beir"] if name.startswith("cqadupstack-")]
    assert len(parts) == 12
    assert {spec.name for spec in specs if spec.identical_ids == "drop"} == {
        *("arguana", "quora", "nano-arguana", "nano-quora"),
        *parts,
    }
    assert dataset("beir/quora/dev").identical_ids == "drop"
    assert dataset("beir/arguana", identical_ids="keep").identical_ids == "keep"
    assert {dataset(name).identical_ids for name in ("cranfield", "vaswani")} == {"keep"}
