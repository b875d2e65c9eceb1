"""docs/wire.md says what the code does: its tables, limits, bytes and the worked example are read and compared."""

import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Final, get_args

import msgpack
import numpy as np
import pytest

from feedmill_protocol import hashing, ledger, limits
from feedmill_protocol.codec import decode
from feedmill_protocol.errors import ProtocolError
from feedmill_protocol.messages import Batch, Fail, Message, Pong, Reject, Welcome
from feedmill_protocol.plan import Plan
from feedmill_protocol.tensors import ITEM_BYTES, TensorSpec, offsets

HERE: Final = Path(__file__)
TEXT: Final = (HERE.parents[2] / "docs" / "wire.md").read_text(encoding="utf-8")
GOLDEN: Final[list[dict[str, Any]]] = json.loads(HERE.with_name("golden.json").read_text(encoding="utf-8"))
TYPES: Final = {cls.type: cls for cls in get_args(Message)}

TOGETHER: Final = re.compile("a payload of|no row of shape|has no channels|one number for each channel")
"""What is said of values that are allowed one by one."""

Extremes = tuple[list[Any], list[Any]]
"""Values that a type takes, at its bounds, and values beyond them."""


def section(title: str) -> str:
    """Return the text under a heading, up to the next one of the same level or above."""
    match = re.search(rf"^(#+) {re.escape(title)}.*?$\n(.*?)(?=^#{{1,3}} |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert match, title
    return match[2]


def table(text: str, *columns: str) -> list[list[str]]:
    """Return the rows of the table with these columns."""
    header = re.escape("| " + " | ".join(columns) + " |")
    match = re.search(rf"^{header}\n\|[-|]+\n((?:\|.*\n?)*)", text, re.MULTILINE)
    assert match, columns
    return [[cell.strip().strip("`") for cell in line.strip("| ").split(" | ")] for line in match[1].splitlines()]


def number(text: str) -> int:
    """Read ``12``, ``2^40`` or ``2^63-1``."""
    base, _, less = text.partition("-")
    value, _, power = base.partition("^")
    return int(pow(int(value), int(power or 1))) - int(less or 0)


def extremes(kind: str) -> Extremes:  # noqa: PLR0911 - one for each row of the table of types
    """Return values at the bounds of a type of the tables, and values just beyond them."""
    if kind == "boolean":
        return [False, True], [0, 1, None]
    if kind == "dtype":
        return list(ITEM_BYTES), ["uint128", "", None]
    if kind == "number":
        return [0.0, -sys.float_info.max, sys.float_info.max], [1, True, math.inf, math.nan, "1.0", None]
    if match := re.fullmatch(r"integer (\S+)\.\.(\S+)", kind):
        low, high = number(match[1]), number(match[2])
        return [low, high], [low - 1, high + 1, float(low), True, None]
    if match := re.fullmatch(r"string ≤ (\d+)", kind):
        n = int(match[1])
        return ["", "x" * n, "é" * (n // 2)], ["x" * (n + 1), "é" * (n // 2 + 1), b"x", 1]
    if match := re.fullmatch(r"one of (.*)", kind):
        return match[1].split(", "), ["", match[1], None]
    if match := re.fullmatch(r"array ≤ (\d+) of (.*)", kind):
        n, (good, bad) = int(match[1]), extremes(match[2])
        return [[], [good[0]] * n, *([x] for x in good)], [[good[0]] * (n + 1), None, *([x] for x in bad)]
    match = re.fullmatch(r"\[(.*)\]", kind)
    assert match, kind
    parts = [extremes(part.split(": ", 1)[1]) for part in re.split(r", (?=\w+: )", match[1])]
    first = [good[0] for good, _ in parts]

    def changed(position: int, value: object) -> list[object]:
        return [*first[:position], value, *first[position + 1 :]]

    return (
        [changed(i, x) for i, (good, _) in enumerate(parts) for x in good],
        [first[:-1], [*first, 0], *(changed(i, x) for i, (_, bad) in enumerate(parts) for x in bad)],
    )


def example(kind: str) -> dict[str, Any]:
    """Return the map of the first golden header of a type, with every field in it."""
    item = next(item for item in GOLDEN if item["message"]["type"] == kind)
    return {"v": limits.PROTOCOL_VERSION, **item["message"]}


def packed(items: dict[str, Any]) -> bytes:
    return bytes(msgpack.packb(items))


def field_rows(kind: str) -> list[list[str]]:
    text = section(kind)
    return [] if "It has no fields." in text else table(text, "field", "type", "default", "meaning")


FIELDS: Final = [(kind, *row[:3]) for kind in TYPES for row in field_rows(kind)]
every_field = pytest.mark.parametrize(("kind", "name", "type_", "default"), FIELDS, ids=lambda x: x[:12])


@pytest.mark.parametrize("kind", TYPES)
def test_every_message_has_a_section_with_its_fields(kind: str) -> None:
    """All of them, in the order of the code, and no others."""
    assert [row[0] for row in field_rows(kind)] == [f.name for f in fields(TYPES[kind])]


def test_no_section_describes_a_message_that_there_is_not() -> None:
    """Headings in capitals are messages."""
    assert re.findall(r"^### ([A-Z]{2,})$", TEXT, re.MULTILINE) == [
        *("HELLO", "GET", "CANCEL", "PING", "BYE"),
        *("WELCOME", "BATCH", "FAIL", "PONG", "DRAIN", "REJECT"),
    ]


def test_every_message_stands_under_who_sends_it() -> None:
    """What the ledger takes from a server is what the text says that servers send."""
    servers = TEXT.index("## 4. Messages from the server")
    for cls in (Welcome, Batch, Fail, Pong, Reject):
        assert TEXT.index(f"### {cls.type}\n") > servers
    for kind in ("HELLO", "GET", "CANCEL", "PING", "BYE"):
        assert TEXT.index(f"### {kind}\n") < servers


@every_field
def test_every_value_that_a_type_allows_is_taken(kind: str, name: str, type_: str, default: str) -> None:
    """At its bounds; what does not go with the rest is refused for that alone."""
    for value in extremes(type_)[0]:
        try:
            decode(packed({**example(kind), name: value}))
        except ProtocolError as error:
            if not TOGETHER.search(str(error)):
                pytest.fail(f"{value!r}: {error}")


@every_field
def test_every_value_beyond_a_type_is_refused(kind: str, name: str, type_: str, default: str) -> None:
    """By the name of the field."""
    for value in extremes(type_)[1]:
        with pytest.raises(ProtocolError, match=rf"^{kind}\.{name}\b"):
            decode(packed({**example(kind), name: value}))


@every_field
def test_every_default_is_what_the_code_fills_in(kind: str, name: str, type_: str, default: str) -> None:
    """Or the field is required."""
    items = {key: value for key, value in example(kind).items() if key != name}
    (field,) = (f for f in fields(TYPES[kind]) if f.name == name)
    if default == "required":
        assert field.default is MISSING
        with pytest.raises(ProtocolError, match=f"^{kind}: {name} is missing"):
            decode(packed(items))
        return
    value = getattr(decode(packed(items)), name)
    assert (list(value) if isinstance(value, tuple) else value) == json.loads(default)


def test_every_limit_is_listed_with_its_number() -> None:
    """All of limits.py, and nothing else."""
    listed = {name: int(value) for name, value, _ in table(section("8. Limits"), "name", "value", "of what")}
    assert listed == {name: value for name, value in vars(limits).items() if name.isupper()}


def test_the_timing_is_the_ledgers() -> None:
    """Each constant with its number."""
    for name, value, _ in table(section("7. Liveness"), "name", "value", "meaning"):
        assert float(value) == getattr(ledger, name)


def test_the_high_water_marks_leave_room_for_the_credit() -> None:
    """Twice OUTSTANDING, as the text says."""
    (row,) = (row for row in table(TEXT, *TRANSPORT) if row[0].startswith("SNDHWM"))
    assert row[1] == row[2] == str(2 * limits.OUTSTANDING)


TRANSPORT: Final = ("option", "client (DEALER)", "server (ROUTER)", "because")


def test_every_dtype_is_listed_with_its_size() -> None:
    """In the order of the code."""
    rows = table(section("5. The block of a batch"), "dtype", "bytes", "elements")
    assert [(name, int(size)) for name, size, _ in rows] == list(ITEM_BYTES.items())


def test_the_place_of_an_element_is_that_of_channels_last() -> None:
    """The formula of the text, against numpy's own transposition."""
    assert "is number\n((n × H + y) × W + x) × C + c." in section("5. The block of a batch")  # noqa: RUF001
    n, c, h, w = 2, 3, 4, 5
    places = np.arange(n * c * h * w).reshape(n, h, w, c).transpose(0, 3, 1, 2)
    for (i, k, y, x), place in np.ndenumerate(places):
        assert place == ((i * h + y) * w + x) * c + k


def test_every_code_of_reject_is_explained() -> None:
    """Those that the field takes, in their order."""
    (codes,) = (type_ for kind, name, type_, _ in FIELDS if (kind, name) == ("REJECT", "code"))
    rows = table(section("REJECT"), "code", "answers", "the client")
    assert [row[0] for row in rows] == codes.removeprefix("one of ").split(", ")


def test_every_byte_that_is_quoted_is_golden() -> None:
    """Hex in the text is the header or the payload of a golden frame."""
    golden = {item[part] for item in GOLDEN for part in ("header", "payload")}
    quoted = re.findall(r"^ {8}(?:payload )?([0-9a-f]{12,})$", TEXT, re.MULTILINE)
    assert len(quoted) >= 8
    assert set(quoted) <= golden


def test_the_example_of_a_block_is_right() -> None:
    """Three tensors, where they lie, and how long the payload is."""
    match = re.search(r"lie at (\d+) \(68 bytes\), (\d+) \(2 bytes\)\nand (\d+) \(none\), .* is (\d+) bytes\.", TEXT)
    assert match
    starts, end = offsets([TensorSpec("float32", (1, 17)), TensorSpec("float16", (1,)), TensorSpec("uint8", (1, 0))])
    assert [int(n) for n in match.groups()] == [*starts, end + 1]


# The worked example.


def hashed(*words: int) -> str:
    return f"0x{int(hashing.hash64(hashing.Domain(words[0]), *words[1:])[0]):016x}"


def integers(cells: Sequence[str]) -> list[int]:
    return [int(cell) for cell in cells]


COUNTS: Final = [7, 0, 5, 9, 4]


def plans() -> list[Plan]:
    return [Plan(COUNTS, batch_size=4, seed=42, window=2, run=2, rank=rank, world_size=2) for rank in (0, 1)]


def test_the_hashes_of_the_example_are_right() -> None:
    """Of every prefix of the words, of the shards, and the domains are those of the code."""
    words = [1, 42, 3, 0]
    rows = table(TEXT, "after the word", "h")
    assert rows == [[str(words[i]), hashed(*words[: i + 1])] for i in range(4)]
    of_the_wire = {d.name: int(d) for d in hashing.Domain if d is not hashing.Domain.PACKING}
    assert of_the_wire == {"SHARDS": 1, "RUNS": 2, "SAMPLE": 3}


def test_the_order_of_the_example_is_right() -> None:
    """The tables are sorted by the hashes that they show, and read off they give the samples of the plan."""
    shards = table(TEXT, "shard", "hash64(1, 42, 3, shard)")
    assert [h for _, h in shards] == [hashed(1, 42, 3, int(s)) for s, _ in shards] == sorted(h for _, h in shards)
    order = integers([s for s, _ in shards])
    runs = table(TEXT, "window", "shard", "k", "samples", "hash64(2, 42, 3, shard, k)")
    assert [h for *_, h in runs] == [hashed(2, 42, 3, int(s), int(k)) for _, s, k, _, _ in runs]
    assert runs == sorted(runs, key=lambda row: (row[0], row[4]))
    assert all(order.index(int(s)) // 2 == int(window) for window, s, *_ in runs)
    whole = Plan(COUNTS, batch_size=25, seed=42, window=2, run=2).batch(3, 0).tolist()
    samples = [(int(s), int(i)) for _, s, _, numbers, _ in runs for i in numbers.split(", ")]
    assert samples == [(shard, i) for shard, start, stop in whole for i in range(start, stop)]


def test_the_batches_of_the_example_are_right() -> None:
    """Steps, ranks, bounds and spans."""
    rows = table(TEXT, "step", "rank", "from", "to", "spans: shard, start, stop")
    assert [(*integers(row[:4]), [integers(span.split(", ")) for span in row[4].split("; ")]) for row in rows] == [
        (step, rank, *plan.bounds(step), plan.batch(3, step).tolist())
        for step in range(4)
        for rank, plan in enumerate(plans())
    ]


def test_the_seeds_of_the_example_are_right() -> None:
    """As sample_seeds gives them."""
    rows = table(TEXT, "shard", "sample", "its seed")
    assert rows
    for shard, index, seed in rows:
        assert seed == f"0x{int(hashing.sample_seeds(42, 3, int(shard), int(index))[0]):016x}"


@pytest.mark.parametrize("samples", [16, 17, 18, 23])
@pytest.mark.parametrize("last", ["keep", "drop", "pad"])
def test_the_table_of_steps_is_right(samples: int, last: Any) -> None:
    """For each kind of rest, with batches of 4 on 2 ranks: how many steps there are, and how many are even."""
    q, rest = divmod(samples, 8)
    kind = "0" if rest == 0 else "> 0" if last != "keep" else "≥ R" if rest >= 2 else "1 … R − 1"  # noqa: RUF001 - a minus
    row = next(r for r in table(TEXT, "last", "rest", "steps", "even") if r[0] in {"any", last} and r[1] == kind)
    value = {"q": q, "q + 1": q + 1, "q − 1": q - 1}  # noqa: RUF001 - a minus
    plan = Plan([samples], batch_size=4, world_size=2, last=last)
    assert [len(plan), plan._even] == [value[row[2]], value[row[3]]]
