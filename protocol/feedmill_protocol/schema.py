"""Checks for what comes from the network: one small function for each kind of value.

A check takes a decoded value and the path at which it stands, and returns the value in its Python form or raises
ProtocolError: "GET.epoch: expected an integer in 0..9, got 'x'". Messages carry them in their annotations.
"""

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, TypeAlias, get_args, get_origin, get_type_hints

from .errors import ProtocolError

__all__ = ["Check", "checks", "flag", "integer", "number", "one_of", "record", "sequence", "text"]

Check: TypeAlias = Callable[[object, str], object]


def _expected(what: str, value: object, path: str) -> ProtocolError:
    if isinstance(value, (list, tuple, dict)):  # repr would recurse as deep as a hostile peer nests
        return ProtocolError(f"{path}: expected {what}, got {'a map' if isinstance(value, dict) else 'an array'}")
    shown = repr(value)
    return ProtocolError(f"{path}: expected {what}, got {shown if len(shown) <= 60 else shown[:57] + '...'}")


def integer(low: int, high: int) -> Check:
    """Accept integers of low..high."""

    def check(value: object, path: str) -> int:
        if type(value) is not int or not low <= value <= high:
            raise _expected(f"an integer in {low}..{high}", value, path)
        return value

    return check


def number(value: object, path: str) -> float:
    """Accept finite floating-point numbers."""
    if type(value) is not float or not math.isfinite(value):
        raise _expected("a finite floating-point number", value, path)
    return value


def flag(value: object, path: str) -> bool:
    """Accept true and false."""
    if type(value) is not bool:
        raise _expected("a boolean", value, path)
    return value


def text(max_bytes: int) -> Check:
    """Accept strings of at most max_bytes in UTF-8."""

    def check(value: object, path: str) -> str:
        if type(value) is not str or len(value.encode()) > max_bytes:
            raise _expected(f"a string of at most {max_bytes} bytes", value, path)
        return value

    return check


def one_of(*choices: str) -> Check:
    """Accept the given strings."""

    def check(value: object, path: str) -> str:
        if type(value) is not str or value not in choices:
            raise _expected(f"one of {', '.join(choices)}", value, path)
        return value

    return check


def sequence(item: Check, max_items: int) -> Check:
    """Accept arrays of at most max_items, each of which passes the check; return a tuple."""

    def check(value: object, path: str) -> tuple[object, ...]:
        if not isinstance(value, (list, tuple)) or len(value) > max_items:
            raise _expected(f"an array of at most {max_items} items", value, path)
        return tuple(item(v, f"{path}[{i}]") for i, v in enumerate(value))

    return check


def record(cls: type[Any], **items: Check) -> Check:
    """Accept arrays that hold the fields of a dataclass in order."""

    def check(value: object, path: str) -> object:
        if not isinstance(value, (list, tuple)) or len(value) != len(items):
            raise _expected(f"an array of {', '.join(items)}", value, path)
        return cls(*(c(v, f"{path}.{name}") for v, (name, c) in zip(value, items.items(), strict=True)))

    return check


def checks(cls: type[Any]) -> dict[str, Check]:
    """Return the check of every field of a dataclass whose annotations are ``Annotated[type, check]``."""
    hints = get_type_hints(cls, include_extras=True)
    found = {}
    for field in fields(cls):
        hint = hints[field.name]
        if get_origin(hint) is not Annotated:
            raise TypeError(f"{cls.__name__}.{field.name} has no check")
        found[field.name] = get_args(hint)[1]
    return found
