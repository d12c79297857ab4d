import importlib.metadata

import pytest

from xsweep.errors import DataError
from xsweep.evaluator.data import apidocs
from xsweep.evaluator.data.collection import Collection
from xsweep.evaluator.specs import ApidocsSpec

pytestmark = pytest.mark.slow(0.5)


@pytest.fixture(scope="module")
def splits() -> dict[str, Collection]:
    return {
        split: apidocs.load(ApidocsSpec(name=split, split=split))
        for split in ("train", "validation", "test")
    }


def test_splits_share_documents_and_part_the_queries(splits: dict[str, Collection]) -> None:
    documents = dict(splits["test"].documents())
    assert 2000 <= len(documents) <= 5000
    assert all(dict(collection.documents()) == documents for collection in splits.values())
    queries = [set(collection.queries) for collection in splits.values()]
    assert set.union(*queries) == set(documents)
    assert sum(map(len, queries)) == len(documents)
    assert len(splits["test"].queries) >= 200
    assert 120 <= len(splits["validation"].queries) <= 250


def test_each_query_has_the_one_document_it_was_cut_from(splits: dict[str, Collection]) -> None:
    for collection in splits.values():
        assert collection.qrels == {name: {name: 1} for name in collection.queries}
        assert all(4 <= len(query.split()) <= 40 for query in collection.queries.values())


def test_no_query_or_document_occurs_twice(splits: dict[str, Collection]) -> None:
    texts = [text for _, text in splits["test"].documents()]
    queries = [text for collection in splits.values() for text in collection.queries.values()]
    assert len(set(texts)) == len(texts)
    assert len(set(queries)) == len(queries)


def test_all_three_packages_and_compiled_names_are_there(splits: dict[str, Collection]) -> None:
    names = {name for name, _ in splits["test"].documents()}
    for name in ("json", "numpy.sin", "numpy.nditer.iterindex", "torch.nn.modules.linear.Linear"):
        assert any(each.startswith(name.split(".")[0]) for each in names), name
    assert {"torch.argmax", "torch.nn.modules.linear.Linear", "numpy.hypot"} <= names


def test_a_docstring_is_cut_after_its_first_paragraph_and_loses_its_marks() -> None:
    docstring = """sum(input, dim) -> Tensor

    Returns the sum of :attr:`input`, see
    :func:`~torch.mean`.

    Args:
        {input} ``dim`` is an int.
    """
    expected = ("Returns the sum of input, see torch.mean.", "Args: dim is an int.")
    assert apidocs.cut(docstring) == expected
    assert apidocs.cut("") == ("", "")
    assert apidocs.cut("f(x)") == ("", "")


def test_marks_of_restructured_text_take_no_room() -> None:
    docstring = """Return the *absolute* value.

    Parameters
    ----------
    x : array_like
        A value::

    .. note:: Slow for ``x`` < 2**53, see :ref:`notes`.

    >>> abs(-1)
    """
    body = "Parameters x : array_like A value: Slow for x < 2**53, see notes. abs(-1)"
    assert apidocs.cut(docstring) == ("Return the absolute value.", body)


def test_a_document_starts_with_its_name_without_private_modules(
    splits: dict[str, Collection],
) -> None:
    assert apidocs.title("numpy._core.numeric.allclose") == "numpy.numeric.allclose"
    texts = dict(splits["test"].documents())
    assert texts["numpy._core.numeric.allclose"].startswith("numpy.numeric.allclose: ")


def test_a_name_keeps_its_split_whatever_else_is_installed() -> None:
    names = ["json.dump", "numpy.sin", "torch.argmax", "torch.nn.modules.linear.Linear"]
    assert [apidocs.split_of(name) for name in names] == ["train", "validation", "train", "train"]


def test_another_version_than_declared_is_a_data_error() -> None:
    installed = apidocs.versions()
    assert installed["numpy"] == importlib.metadata.version("numpy")
    apidocs.load(ApidocsSpec(name="x", split="test", versions=installed))
    with pytest.raises(DataError, match=r"declared with torch 1\.0"):
        apidocs.load(ApidocsSpec(name="x", split="test", versions={"torch": "1.0"}))
