"""Plain YAML is read with positions; everything else is refused at its position."""

from pathlib import Path

import pytest

from xsweep.errors import ConfigError
from xsweep.orchestrator.grid.yaml import MAX_BYTES, YamlFile, nearest, read_yaml


def read(folder: Path, text: str | bytes, **variables: str | None) -> YamlFile:
    path = folder / "f.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(path, variables)


def test_scalars_follow_yaml_1_2(tmp_path: Path) -> None:
    text = 'a: no\nb: 1e-5\nc: 012\nd: "1"\ne: true\nf: null\ng: 2020-01-01\nh: .5\ni: on'
    assert read(tmp_path, text).data == {
        "a": "no",
        "b": 1e-5,
        "c": 12,
        "d": "1",
        "e": True,
        "f": None,
        "g": "2020-01-01",
        "h": 0.5,
        "i": "on",
    }


def test_every_value_and_key_has_a_line_and_column(tmp_path: Path) -> None:
    file = read(tmp_path, "a: 1\nlist:\n  - {x: 2, y: [3, 4]}\n")
    assert file.position(("list", 0, "y", 1)) == (3, 19)
    assert file.position(("list", 0, "y"), at_key=True) == (3, 12)
    assert str(file.error(("a",), "wrong")) == f"{file.path}:1:4: wrong"


def test_a_position_skips_steps_that_are_not_in_the_file(tmp_path: Path) -> None:
    file = read(tmp_path, "a: {b: 1}")
    assert file.position(("a", "function-before", "b")) == (1, 8)
    assert file.position(("a", "missing")) == (1, 4)


def test_variables_are_replaced_inside_strings(tmp_path: Path) -> None:
    assert read(tmp_path, 'a: "${home}/x ${home}"', home="/d").data == {"a": "/d/x /d"}


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("a: 1\nb: 2\na: 3", ":3:1: ", "duplicate key 'a' (first in line 1)"),
        ("a: !!python/object:os.system x", ":1:4: ", "is not allowed: a grid file holds plain"),
        ("a: !!python/tuple [1]", ":1:4: ", "plain data"),
        ("a: !own {b: 1}", ":1:4: ", "'!own' is not allowed"),
        ("a: !!binary aGVsbG8=", ":1:4: ", "not allowed"),
        ("? !!python/name:os x\n: b", ":1:3: ", "a key must be a string"),
        ("? [a]\n: b", ":1:3: ", "a key must be a string"),
        ("a: &x {b: 1}\nc:\n  <<: *x", ":3:3: ", "merge keys"),
        ("a: .nan", ":1:4: ", "not a finite number"),
        ("a: -.inf", ":1:4: ", "not a finite number"),
        ("a: 1e999", ":1:4: ", "not a finite number"),
        ("a: " + "9" * 5000, ":1:4: ", "is not a number"),
        ("a: !!float abc", ":1:4: ", "'abc' is not a number of type float"),
        ("a: [1, 2", ":1:9: ", "not valid YAML"),
        ("a: b: c", ":1:5: ", "not valid YAML"),
        ("a:\n\t- 1", ":2:1: ", "not valid YAML"),
        ("a: 1\n---\nb: 2", ":2:1: ", "another document"),
        ("a: 1\nb: \x07", ":2:4: ", "not valid YAML"),
        ("a: *x", ":1:4: ", "undefined alias"),
        ("a: ${home}/x", ":1:4: ", "${home} is not set: give --home or XSWEEP_HOME"),
        ("a: ${other}", ":1:4: ", "unknown variable '${other}': known is ${home}"),
        ("a: ${home", ":1:4: ", "unknown variable '${home'"),
        ("", ":1:1: ", "is a mapping of keys"),
        ("- a", ":1:1: ", "is a mapping of keys"),
        ("just words", ":1:1: ", "is a mapping of keys"),
        ('a: 1\nb: "x\\0y"', ":2:4: ", "a NUL or half of a surrogate pair"),
        ('a: ["x\\ud800y"]', ":1:5: ", "a NUL or half of a surrogate pair"),
        ('"\\udfff": 1', ":1:1: ", "a NUL or half of a surrogate pair"),
        (b"a: 1\nb: \xff", ":2:4: ", "0xff is not UTF-8"),
        ("a: &a [*a]", ":1:4: ", "nested deeper than 20 levels"),
        ("a: " + "[" * 30 + "]" * 30, ":1:24: ", "nested deeper than 20 levels"),
        ("[" * 3_000, ": ", "nested far too deep"),
    ],
)
def test_anything_but_plain_yaml_is_refused_at_its_position(
    tmp_path: Path, text: str | bytes, place: str, message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text, home=None)
    assert str(error.value).startswith(f"{tmp_path / 'f.yaml'}{place}")
    assert message in str(error.value)


def test_exponential_aliases_are_refused(tmp_path: Path) -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    text += "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(9))
    with pytest.raises(ConfigError, match="more than 100,000 values"):
        read(tmp_path, text)


def test_an_alias_is_a_copy(tmp_path: Path) -> None:
    assert read(tmp_path, "a: &x [1]\nb: *x").data == {"a": [1], "b": [1]}


def test_a_file_above_the_limit_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has 10\.0 MB; a grid file has at most 1 MB"):
        read(tmp_path, b"a" * (10 * MAX_BYTES))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_yaml(tmp_path / "none.yaml", {})
    with pytest.raises(ConfigError, match="directory"):
        read_yaml(tmp_path, {})


def test_the_nearest_name_is_suggested_in_any_case() -> None:
    assert nearest("INFONCE", ["bce", "infonce"]) == "did you mean 'infonce'?"
    assert nearest("zzz", ["b", "a"]) == "known are a, b"
    many = [f"x{number}" for number in range(1000, 2200)]
    assert nearest("zzz", many) == f"known are {', '.join(many[:20])} and 1180 more"
    assert nearest("zzz", []) == "there are none"
