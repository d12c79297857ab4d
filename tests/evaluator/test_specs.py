import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from xsweep.evaluator.specs import (
    COLLECTION,
    Bm25Spec,
    EvaluateSpec,
    FirstStageSpec,
    IrdsSpec,
    Location,
    ModelSpec,
    TeacherModelSpec,
)


def test_importing_the_specs_loads_nothing_heavy() -> None:
    code = "import sys, xsweep.evaluator.specs, xsweep.evaluator.data.suites; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "transformers", "numpy", "ranx", "ir_datasets", "bm25s", "ray"}


def test_the_source_chooses_the_collection() -> None:
    spec = COLLECTION.validate_python({"name": "x", "source": "irds", "id": "cranfield"})
    assert spec == IrdsSpec(name="x", id="cranfield")
    apidocs = COLLECTION.validate_python({"source": "apidocs", "name": "a", "split": "test"})
    assert apidocs.versions == {}
    first_stage = TypeAdapter(FirstStageSpec).validate_python({"type": "bm25"})
    assert first_stage == Bm25Spec(k1=0.9, b=0.4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "x", "source": "web"},
        {"name": "x", "source": "irds", "id": "y", "extra": 1},
        {"name": "x", "source": "apidocs", "split": "dev"},
        {"source": "irds", "id": "y"},
    ],
)
def test_invalid_collections_are_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        COLLECTION.validate_python(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"id": "a", "folder": "b"},
        {"package": "p", "revision": "main"},
        {"id": "a", "layers": 0},
    ],
)
def test_a_model_has_exactly_one_source(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        ModelSpec(**wrong)


def test_specs_are_immutable_values() -> None:
    spec = ModelSpec(id="a")
    with pytest.raises(ValidationError):
        spec.id = "b"  # type: ignore[misc]
    assert {spec, ModelSpec(id="a")} == {spec}
    assert TeacherModelSpec(type="bi_encoder", models=(spec,)).models == (spec,)


def test_locations_are_marked() -> None:
    marked = [name for name, field in ModelSpec.model_fields.items() if Location in field.metadata]
    assert marked == ["folder"]


def test_measures_are_checked_and_take_their_canonical_names() -> None:
    collection = {"name": "x", "source": "irds", "id": "y"}
    spec = EvaluateSpec(collection=collection, measures=["ndcg@10", "RR(rel=1)@10"])
    assert spec.measures == ("nDCG@10", "RR@10")
    with pytest.raises(ValidationError, match="unknown measure 'BLEU'"):
        EvaluateSpec(collection=collection, measures=["BLEU"])
    with pytest.raises(ValidationError, match="at least one measure"):
        EvaluateSpec(collection=collection, measures=[])


def test_specs_survive_json() -> None:
    spec = EvaluateSpec(
        collection=IrdsSpec(name="x", id="y", home=str(Path("/data"))), depth=100, precision="bf16"
    )
    assert EvaluateSpec.model_validate_json(spec.model_dump_json()) == spec
