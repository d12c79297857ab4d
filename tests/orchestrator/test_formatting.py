import pytest

from xsweep.orchestrator.formatting import data_size, duration


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
