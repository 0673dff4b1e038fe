"""What terminals show of numbers."""

import math

import pytest

from server.terminal import rounded


@pytest.mark.parametrize(
    ("value", "scale", "sign", "expected"),
    [
        (0.12345, None, "", "0.123"),
        (-12.3456, None, "+", "-12.346"),
        (1699999999.947, None, "", "1699999999.947"),
        (0.0, None, "", "0.000"),
        (0.0, None, "+", "+0.000"),
        (0.00123456, None, "", "0.00123"),
        (0.00123456, 5.0, "", "0.001"),
        (3.0123e-06, 1e-6, "", "3.01e-06"),
        (4.2968e-7, None, "+", "+4.3e-07"),
        (math.nan, None, "", "nan"),
    ],
)
def test_no_number_but_zero_is_shown_as_zero(
    value: float, scale: float | None, sign: str, expected: str
) -> None:
    assert rounded(value, scale, sign) == expected
