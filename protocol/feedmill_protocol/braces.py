"""Brace expansion, the shell's shorthand for many names: ``train-{0000..1280}.tar``, ``tcp://{a,b}:7880``.

The rule of this file: never more than `limits.SHARDS` names, and nothing is guessed. Where a shell leaves odd braces as
they stand, this is an error, since ``{0000-1280}`` is a slip and not a file name.
"""

import re
from typing import Final

from . import limits
from .errors import UsageError

__all__ = ["expand"]

_TOKEN: Final = re.compile(r"\{(-?[0-9]{1,18})\.\.(-?[0-9]{1,18})(?:\.\.(-?[0-9]{1,18}))?\}|[{},]|[^{},]+")


def expand(pattern: str) -> list[str]:
    """Expand the braces of ``pattern`` as bash does, the leftmost varying slowest.

    ``{a,b}`` is a list, ``{08..12}`` a range with its zeros kept, ``{10..0..2}`` a range with a step; they nest, and
    there may be several. Raises `UsageError` for braces that do not match or are neither, and for too many names.
    """
    outer: list[tuple[list[str], list[str]]] = []  # of every open brace: what was before it, and its alternatives
    names = [""]
    for token in _TOKEN.finditer(pattern):
        text = token[0]
        if text == "{":
            outer.append((names, []))
            names = [""]
        elif text == "," and outer:
            outer[-1][1].extend(names)
            _check_count(pattern, len(outer[-1][1]))
            names = [""]
        elif text == "}":
            if not outer or not outer[-1][1]:
                raise UsageError(_complaint(pattern, token.end()))
            before, alternatives = outer.pop()
            names = _product(pattern, before, [*alternatives, *names])
        elif token[1]:
            names = _product(pattern, names, _range(pattern, token[1], token[2], token[3]))
        else:
            names = [name + text for name in names]
    if outer:
        raise UsageError(_complaint(pattern, len(pattern)))
    return names


def _product(pattern: str, heads: list[str], tails: list[str]) -> list[str]:
    _check_count(pattern, len(heads) * len(tails))
    return [head + tail for head in heads for tail in tails]


def _range(pattern: str, first: str, last: str, step: str | None) -> list[str]:
    start, stop, stride = int(first), int(last), abs(int(step or 1))
    if not stride:
        raise UsageError(f"the pattern {pattern!r} has a range with step 0; leave the step out for 1")
    _check_count(pattern, abs(stop - start) // stride + 1)
    padded = any(re.match("-?0[0-9]", bound) for bound in (first, last))
    width = max(len(first), len(last)) if padded else 0
    values = range(start, stop + 1, stride) if start <= stop else range(start, stop - 1, -stride)
    return [f"{value:0{width}d}" for value in values]


def _check_count(pattern: str, count: int) -> None:
    if count > limits.SHARDS:
        raise UsageError(
            f"the pattern {pattern!r} stands for {count:,} or more names, of at most {limits.SHARDS:,}; "
            "check the bounds of its ranges"
        )


def _complaint(pattern: str, end: int) -> str:
    return (
        f"the pattern {pattern!r} has braces that do not match, or hold neither a list nor a range, "
        f"at {pattern[:end]!r}; write {{a,b}} or {{0000..1280}}"
    )
