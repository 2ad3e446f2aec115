import pytest

from data_prep.filters.limits import longest_line, mean_line_length
from data_prep.filters.starcoder import alphanumeric_fraction


@pytest.mark.parametrize(
    ("text", "longest", "mean", "alphanumeric"),
    [
        ("", 0, 0.0, 0.0),
        ("abcd", 4, 4.0, 1.0),
        ("ab\nabcd\n", 4, 3.0, 6 / 8),
        ("\n\n\n", 0, 0.0, 0.0),
        ("é=1\r\n(((", 3, 3.0, 2 / 8),
    ],
)
def test_measures_of_a_text(text: str, longest: int, mean: float, alphanumeric: float) -> None:
    assert longest_line(text) == longest
    assert mean_line_length(text) == mean
    assert alphanumeric_fraction(text) == alphanumeric
