"""An identity changes with everything that changes a result, and with nothing else."""

import json
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

from xsweep.errors import ConfigError
from xsweep.evaluator.specs import (
    Bm25Spec,
    CandidatesSpec,
    EvaluateSpec,
    FileSpec,
    FolderSpec,
    IrdsSpec,
    Location,
    ModelSpec,
    PrepareSpec,
    RunSpec,
    ScoredDocsSpec,
    Spec,
    TeachSpec,
)
from xsweep.orchestrator.plan.identity import canonical, identity_of, significant
from xsweep.trainer.specs import TrainSpec


def identity(kind: str, spec: BaseModel, parents: dict[str, str]) -> str:
    return identity_of(kind, canonical(significant(spec)), parents)


GOLDEN = Path(__file__).with_name("identities.json")
KINDS: dict[str, Any] = {
    "prepare": TypeAdapter(PrepareSpec),
    "teach": TypeAdapter(TeachSpec),
    "train": TypeAdapter(TrainSpec),
    "evaluate": TypeAdapter(EvaluateSpec),
}
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="ascii")), inner),
    max_leaves=20,
)


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text()), ids=lambda case: case["name"])
def test_identities_of_earlier_versions_still_hold(case: dict[str, Any]) -> None:
    """Each case in two forms: as stored then, and with every default of that time written out."""
    for form in ("short", "full"):
        spec = KINDS[case["kind"]].validate_python(case[form])
        assert identity(case["kind"], spec, case["parents"]) == case["identity"], form


def test_canonical_json_is_as_documented() -> None:
    assert canonical({"b": 1.0, "a": 1e-5}) == '{"a":1e-05,"b":1}'
    assert canonical([-0.0, 1e22, 10**22, True, None]) == (
        "[0,10000000000000000000000,10000000000000000000000,true,null]"
    )


def test_composed_and_decomposed_letters_are_equal() -> None:
    assert canonical({"caf\u00e9": "\u00e9"}) == canonical({"cafe\u0301": "e\u0301"})
    with pytest.raises(ConfigError, match="equal in Unicode NFC"):
        canonical({"caf\u00e9": 1, "cafe\u0301": 2})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")]])
def test_numbers_that_are_not_finite_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="not a finite number"):
        canonical(value)


@given(JSON_VALUES)
def test_canonical_json_survives_a_round_trip_through_json(value: Any) -> None:
    assert canonical(json.loads(canonical(value))) == canonical(value)


@given(st.dictionaries(st.text(st.characters(codec="ascii")), st.integers()), st.randoms())
def test_the_order_of_keys_does_not_matter(value: dict[str, int], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert canonical(dict(items)) == canonical(value)


def test_a_file_is_identified_by_its_checksum_and_not_its_path() -> None:
    here, there = FileSpec(path="/a/x", md5="1"), FileSpec(path="/b/y", md5="1")
    assert significant(here) == significant(there) == {"md5": "1"}
    assert significant(FileSpec(path="/a/x")) == {"path": "/a/x"}


def test_the_home_of_ir_datasets_and_the_name_of_a_collection_do_not_matter() -> None:
    one = IrdsSpec(name="scifact", id="beir/scifact/test", home="/a")
    other = IrdsSpec(name="beir/scifact/test", id="beir/scifact/test")
    assert significant(one) == significant(other) == {"source": "irds", "id": "beir/scifact/test"}


def test_a_folder_without_checksum_is_identified_by_its_path() -> None:
    assert significant(FolderSpec(name="x", path="/a")) != significant(
        FolderSpec(name="x", path="/b")
    )
    one = FolderSpec(name="x", path="/a", sha256="1")
    assert significant(one) == significant(FolderSpec(name="y", path="/b", sha256="1"))


def test_a_model_in_a_folder_is_identified_by_its_checksum() -> None:
    one, other = ModelSpec(folder="/a", sha256="1"), ModelSpec(folder="/b", sha256="1")
    assert significant(one) == significant(other)
    assert significant(one) != significant(one.model_copy(update={"layers": 3}))


def test_defaults_are_omitted_but_alternatives_keep_their_tags() -> None:
    collection = IrdsSpec(name="x", id="x")
    stages = [
        Bm25Spec(),
        ScoredDocsSpec(),
        RunSpec(file=FileSpec(path="/a", md5="1")),
        Bm25Spec(b=0.5),
    ]
    specs = [CandidatesSpec(collection=collection, first_stage=stage) for stage in stages]
    assert len({identity("prepare", spec, {}) for spec in specs}) == 4
    assert significant(specs[0]) == {
        "type": "candidates",
        "collection": {"source": "irds", "id": "x"},
    }


def test_a_new_setting_with_its_old_behaviour_as_default_changes_nothing() -> None:
    class Before(Spec):
        lr: float

    class After(Spec):
        lr: float
        temperature: float = 1.0
        cache: Annotated[str | None, Location] = None

    assert identity("train", Before(lr=1e-5), {}) == identity("train", After(lr=1e-5), {})
    warm = After(lr=1e-5, temperature=2.0)
    assert identity("train", warm, {}) != identity("train", After(lr=1e-5), {})


def test_kind_parents_and_their_roles_are_part_of_the_identity() -> None:
    spec = EvaluateSpec(collection=IrdsSpec(name="x", id="x"))
    a, b = "a" * 64, "b" * 64
    found = {
        identity("evaluate", spec, {}),
        identity("teach", spec, {}),
        identity("evaluate", spec, {"run": a}),
        identity("evaluate", spec, {"run": b}),
        identity("evaluate", spec, {"candidates": a}),
        identity("evaluate", spec, {"candidates": b, "run": a}),
        identity("evaluate", spec, {"candidates": a, "run": b}),
    }
    assert len(found) == 7
