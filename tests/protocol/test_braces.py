from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedmill_protocol import limits
from feedmill_protocol.braces import expand
from feedmill_protocol.errors import UsageError


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", [""]),
        ("a,b.tar", ["a,b.tar"]),
        ("{a,b}", ["a", "b"]),
        ("x{,y}z", ["xz", "xyz"]),
        ("{1..3}", ["1", "2", "3"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{-1..1}", ["-1", "0", "1"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{8..010}", ["008", "009", "010"]),
        ("{-01..1}", ["-01", "000", "001"]),
        ("{0..10..5}", ["0", "5", "10"]),
        ("{0..9..5}", ["0", "5"]),
        ("{10..0..5}", ["10", "5", "0"]),
        ("{10..0..-5}", ["10", "5", "0"]),
        ("{a,b}{1..2}", ["a1", "a2", "b1", "b2"]),
        ("{a,b{1..2},{c,d}e}f", ["af", "b1f", "b2f", "cef", "def"]),
    ],
)
def test_braces_expand_as_in_bash(pattern: str, names: list[str]) -> None:
    """The names and their order are those that bash gives."""
    assert expand(pattern) == names


@pytest.mark.parametrize("pattern", ["{", "}", "a{b", "a}b", "{a,b", "a,b}", "{a,{b}", "{a}", "{}", "{0-9}", "{1..x}"])
def test_odd_braces_are_refused(pattern: str) -> None:
    """Braces that do not match, or hold neither a list nor a range, are an error that quotes the pattern."""
    with pytest.raises(UsageError, match=r"write \{a,b\} or") as caught:
        expand(pattern)
    assert repr(pattern) in str(caught.value)


def test_a_step_of_zero_is_refused() -> None:
    """A range cannot have step 0."""
    with pytest.raises(UsageError, match="step 0"):
        expand("{1..5..0}")


@pytest.mark.parametrize(
    "pattern",
    [
        "{0..999999999999999999}",
        "{0..9999}{0..9999}{0..9999}",
        "{{1..60},{1..60}}",
        "{{1..60},{1..60},a}",
        "{1..101}",
    ],
)
def test_too_many_names_are_refused_before_they_are_made(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More names than a stream may have shards are an error, at once however many they would be."""
    monkeypatch.setattr(limits, "SHARDS", 100)
    with pytest.raises(UsageError, match="of at most 100"):
        expand(pattern)


@given(st.text(alphabet="{},.0123-ab", max_size=40))
def test_any_pattern_expands_or_is_refused(pattern: str) -> None:
    """No text makes any other exception than UsageError, and what comes out has no braces left."""
    with mock.patch.object(limits, "SHARDS", 1000):
        try:
            names = expand(pattern)
        except UsageError:
            return
    assert names
    assert not any("{" in name or "}" in name for name in names)


@given(st.integers(0, 10**6), st.integers(0, 300), st.integers(1, 9), st.integers(1, 8))
def test_a_range_is_what_range_gives(first: int, more: int, step: int, width: int) -> None:
    """A padded range has the numbers of range(), all of one width."""
    pattern = f"{{{first:0{width}d}..{first + more:0{width}d}..{step}}}"
    names = expand(pattern)
    assert [int(name) for name in names] == list(range(first, first + more + 1, step))
    if first < 10 ** (width - 1) and width > 1:
        assert {len(name) for name in names} == {max(width, len(str(first + more)))}
