from typing import Any

import numpy as np
import pytest
import torch

from feedmill_protocol.arguments import DAY, integer, seconds
from feedmill_protocol.errors import UsageError


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)])
def test_an_integer_of_any_make_becomes_an_int(value: Any) -> None:
    """Python's, NumPy's, torch's."""
    found = integer("n", value, 0, 3)
    assert (type(found), found) == (int, 3)


@pytest.mark.parametrize("value", [-1, 4, 2.0, np.float32(2), True, np.True_, "2", None, [2], np.array([1, 2]), 2**70])
def test_anything_else_is_refused_by_name_and_value(value: Any) -> None:
    """Also what Python would take for an integer: a boolean."""
    with pytest.raises(UsageError) as raised:
        integer("n", value, 0, 3)
    assert str(raised.value) == f"n={value!r}: expected an integer in 0..3"


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), True, "1", None])
def test_a_time_out_is_a_positive_number_of_seconds(value: Any) -> None:
    """Neither a switch nor for ever."""
    assert (seconds("timeout", 1), seconds("timeout", 0.5)) == (1, 0.5)
    with pytest.raises(UsageError, match=r"timeout=.*: expected a positive number of seconds"):
        seconds("timeout", value)


def test_a_time_may_have_a_limit() -> None:
    """Which the error names."""
    assert seconds("--every", DAY, DAY) == DAY
    with pytest.raises(UsageError, match=r"--every=86401: expected a positive number of seconds, 86,400 at most"):
        seconds("--every", DAY + 1, DAY)
