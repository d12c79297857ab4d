import pytest

from xsweep.errors import did_you_mean, first_line


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
