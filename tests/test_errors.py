import re

import pytest
from pydantic import BaseModel, Field, ValidationError, field_validator

from xsweep.errors import did_you_mean, field_errors, first_line


def test_the_nearest_known_name_is_suggested_whatever_its_case() -> None:
    assert did_you_mean("INFONZE", ["bce", "InfoNCE"]) == "did you mean 'InfoNCE'?"


def test_no_name_is_suggested_where_none_is_near() -> None:
    assert did_you_mean("zzz", ["bce", "infonce"]) == ""
    assert did_you_mean("zzz", []) == ""


def test_several_names_are_suggested_the_nearest_first() -> None:
    assert did_you_mean("trian", ["trains", "train"], most=2) == "did you mean 'train' or 'trains'?"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n  no such actor \nTraceback"), "no such actor"),
        (ConnectionError(), "ConnectionError"),
        (ConnectionError(" \n"), "ConnectionError"),
    ],
)
def test_an_error_without_a_message_is_called_by_its_class(error: Exception, line: str) -> None:
    assert first_line(error) == line


class Settings(BaseModel, extra="forbid"):
    steps: int = Field(1, ge=1)
    inner: dict[str, int] = {}
    name: str = "x"

    @field_validator("name")
    @classmethod
    def _short(cls, name: str) -> str:
        if len(name) > 3:
            raise ValueError(f"{name} is long")
        return name


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"steps": 0}, "steps should be greater than or equal to 1, not 0"),
        ({"inner": 3}, "inner should be a block of keys, not 3"),
        ({"name": "four"}, "name: four is long"),
        (
            {"stops": 0, "steps": "x" * 99},
            f"steps should be .*, not '{'x' * 56}\\.\\.\\.; stops is unknown",
        ),
    ],
)
def test_a_wrong_field_is_a_sentence_with_its_value(values: dict, sentence: str) -> None:
    with pytest.raises(ValidationError) as error:
        Settings.model_validate(values)
    assert re.fullmatch(sentence, field_errors(error.value))
