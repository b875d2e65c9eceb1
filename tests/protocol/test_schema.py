"""The checks that every value from the network passes."""

from dataclasses import dataclass
from typing import Annotated

import pytest

from feedmill_protocol.errors import ProtocolError
from feedmill_protocol.schema import Check, checks, flag, integer, number, one_of, record, sequence, text


@dataclass(frozen=True)
class Point:
    x: int
    name: str


POINT = record(Point, x=integer(0, 9), name=text(3))


@pytest.mark.parametrize(
    ("check", "value", "result"),
    [
        (integer(-3, 9), -3, -3),
        (integer(-3, 9), 9, 9),
        (flag, True, True),
        (flag, False, False),
        (number, -0.5, -0.5),
        (number, 1e308, 1e308),
        (text(4), "", ""),
        (text(4), "éé", "éé"),
        (one_of("a", "b"), "b", "b"),
        (sequence(integer(0, 9), 2), (), ()),
        (sequence(integer(0, 9), 2), [1, 2], (1, 2)),
        (POINT, (1, "a"), Point(1, "a")),
        (POINT, [9, "abc"], Point(9, "abc")),
    ],
)
def test_what_fits_comes_back_in_its_python_form(check: Check, value: object, result: object) -> None:
    """Bounds are inclusive; arrays become tuples, records dataclasses."""
    assert check(value, "at") == result


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (integer(0, 9), -1, "at: expected an integer in 0..9, got -1"),
        (integer(0, 9), 10, "at: expected an integer in 0..9, got 10"),
        (integer(0, 9), True, "at: expected an integer in 0..9, got True"),
        (integer(0, 9), 1.0, "at: expected an integer in 0..9, got 1.0"),
        (integer(0, 9), None, "at: expected an integer in 0..9, got None"),
        (flag, 1, "at: expected a boolean, got 1"),
        (number, 1, "at: expected a finite floating-point number, got 1"),
        (number, True, "at: expected a finite floating-point number, got True"),
        (number, float("inf"), "at: expected a finite floating-point number, got inf"),
        (number, float("nan"), "at: expected a finite floating-point number, got nan"),
        (number, "0.5", "at: expected a finite floating-point number, got '0.5'"),
        (number, [0.5], "at: expected a finite floating-point number, got an array"),
        (text(3), "éé", "at: expected a string of at most 3 bytes, got 'éé'"),
        (text(3), b"a", "at: expected a string of at most 3 bytes, got b'a'"),
        (one_of("a", "b"), "c", "at: expected one of a, b, got 'c'"),
        (one_of("a", "b"), ("a",), "at: expected one of a, b, got an array"),
        (sequence(flag, 2), (True,) * 3, "at: expected an array of at most 2 items, got an array"),
        (sequence(flag, 2), {}, "at: expected an array of at most 2 items, got a map"),
        (sequence(flag, 2), "ab", "at: expected an array of at most 2 items, got 'ab'"),
        (sequence(flag, 2), (True, 0), "at[1]: expected a boolean, got 0"),
        (POINT, (1,), "at: expected an array of x, name, got an array"),
        (POINT, (1, "a", 2), "at: expected an array of x, name, got an array"),
        (POINT, {"x": 1, "name": "a"}, "at: expected an array of x, name, got a map"),
        (POINT, "1a", "at: expected an array of x, name, got '1a'"),
        (sequence(POINT, 3), ((1, "a"), (10, "a")), "at[1].x: expected an integer in 0..9, got 10"),
    ],
)
def test_what_does_not_fit_is_named_with_its_path(check: Check, value: object, message: str) -> None:
    """The message says where, what was expected, and what came."""
    with pytest.raises(ProtocolError) as caught:
        check(value, "at")
    assert str(caught.value) == message


def test_a_long_value_is_shown_in_part() -> None:
    """A peer cannot fill the log."""
    with pytest.raises(ProtocolError) as caught:
        text(3)("x" * 1000, "at")
    assert str(caught.value) == f"at: expected a string of at most 3 bytes, got '{'x' * 56}..."


def test_the_checks_of_a_dataclass_stand_in_its_annotations() -> None:
    """They come by the name of the field."""

    @dataclass
    class Message:
        a: Annotated[int, integer(0, 9)]
        b: Annotated[bool, flag] = True

    found = checks(Message)
    assert list(found) == ["a", "b"]
    assert found["a"](3, "a") == 3
    assert found["b"] is flag


def test_a_field_without_a_check_is_found_at_import() -> None:
    """Nobody adds a field to a message and forgets to check it."""

    @dataclass
    class Message:
        a: Annotated[int, integer(0, 9)]
        b: int

    with pytest.raises(TypeError, match=r"Message\.b has no check"):
        checks(Message)
