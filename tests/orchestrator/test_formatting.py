import pytest

from xsweep.orchestrator.formatting import data_size, duration, listed, p_value, signed


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (45.2, "45 s"),
        (99.5, "2 min"),
        (5_400, "90 min"),
        (12_000, "3 h 20 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_a_duration_has_the_two_units_that_matter(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1_500, "1.5 kB"), (12.4e6, "12 MB"), (1.21e12, "1.2 TB")],
)
def test_a_size_is_counted_in_powers_of_1000(size_bytes: float, text: str) -> None:
    assert data_size(size_bytes) == text


def test_lists_read_as_prose():
    assert [listed("abc"[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]


def test_signs_are_explicit_and_zero_is_positive():
    assert [signed(x, 2) for x in (0.125, -0.5, 0.0)] == ["+0.12", "−0.50", "+0.00"]


def test_small_p_values_are_bounded():
    assert [p_value(p) for p in (0.04567, 0.001, 0.00099)] == [
        "p = 0.046",
        "p = 0.001",
        "p < 0.001",
    ]
