"""Messages to bytes and back, and what becomes of bytes that no honest peer sent."""

import struct
from dataclasses import fields, replace
from typing import Any, get_args

import msgpack
import numpy as np
import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from feedmill_protocol import codec, limits
from feedmill_protocol.codec import cut, decode, encode, join
from feedmill_protocol.errors import Damaged, ProtocolError, VersionMismatch
from feedmill_protocol.messages import (
    Batch,
    Bye,
    Cancel,
    Drain,
    Fail,
    Get,
    Hello,
    Message,
    Ping,
    Pong,
    Reject,
    Skipped,
    Welcome,
)
from feedmill_protocol.tensors import ITEM_BYTES, FieldSpec, TensorSpec

unhurried = settings(deadline=None, max_examples=300)


def texts(max_bytes: int) -> st.SearchStrategy[str]:
    return st.text(max_size=max_bytes).map(lambda s: s.encode()[:max_bytes].decode(errors="ignore"))


NATURALS = st.integers(0, limits.INT63)
NAMES = texts(limits.NAME_BYTES)
KEYS = texts(limits.KEY_BYTES)
REASONS = texts(limits.REASON_BYTES)
DTYPES = st.sampled_from(sorted(ITEM_BYTES))
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def shapes(rank: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.one_of(st.integers(0, 12), st.integers(0, 2**40)), max_size=rank).map(tuple)


@st.composite
def field_specs(draw: st.DrawFn) -> FieldSpec:
    """Draw any field, or one of pictures, which may have channels last and something left to do."""
    if draw(st.booleans()):
        sizes = st.lists(st.integers(0, 12), max_size=limits.RANK - 1)
        return FieldSpec(draw(NAMES), draw(DTYPES), tuple(draw(sizes)))
    channels = draw(st.integers(0, limits.CHANNELS))
    numbers = st.lists(FINITE, min_size=channels, max_size=channels).map(tuple)
    scale, bias = draw(st.one_of(st.just(((), ())), st.tuples(numbers, numbers)))
    shape = (channels, draw(st.integers(0, 2**14)), draw(st.integers(0, 2**14)))
    return FieldSpec(draw(NAMES), "uint8", shape, draw(st.booleans()), scale, bias)


def fits(message: Batch) -> bool:
    return message.payload_bytes <= limits.BLOCK_BYTES


GETS = st.builds(
    Get,
    stream=NAMES,
    fingerprint=NAMES,
    seed=NATURALS,
    epoch=NATURALS,
    batch=NATURALS,
    spans=st.integers(1, limits.BATCH_SAMPLES),
    on_error=st.sampled_from(["raise", "skip"]),
    attempt=NATURALS,
)
WELCOMES = st.builds(
    Welcome,
    server=NAMES,
    boot=NAMES,
    stream=NAMES,
    fields=st.lists(field_specs(), max_size=limits.FIELDS).map(tuple),
    batch_size=st.integers(1, limits.BATCH_SAMPLES),
    catalog=NAMES,
    fingerprint=NAMES,
    shards=st.integers(1, limits.SHARDS),
    workers=st.integers(1, 65_536),
    counts=st.booleans(),
)
BATCHES = st.builds(
    Batch,
    epoch=NATURALS,
    batch=NATURALS,
    attempt=NATURALS,
    tensors=st.lists(st.builds(TensorSpec, DTYPES, shapes(limits.RANK)), max_size=limits.FIELDS).map(tuple),
    keys=st.integers(0, limits.KEYS_BYTES),
    missing=st.integers(0, limits.BATCH_SAMPLES),
    skipped=st.lists(st.builds(Skipped, KEYS, KEYS, texts(limits.SKIP_REASON_BYTES)), max_size=limits.SKIPPED).map(
        tuple
    ),
).map(lambda b: b if fits(b) else replace(b, tensors=tuple(t for t in b.tensors if t.nbytes < 2**20)))
FAILS = st.builds(
    Fail,
    epoch=NATURALS,
    batch=NATURALS,
    attempt=NATURALS,
    retryable=st.booleans(),
    reason=REASONS,
    shard=KEYS,
    key=KEYS,
)
REJECTS = st.builds(
    Reject, code=st.sampled_from(["version", "stream", "fingerprint", "limit", "protocol"]), reason=REASONS
)
KINDS: dict[str, st.SearchStrategy[Message]] = {
    "HELLO": st.builds(Hello, stream=NAMES, catalog=NAMES),
    "GET": GETS,
    "CANCEL": st.builds(Cancel, epoch=NATURALS, batch=NATURALS),
    "PING": st.just(Ping()),
    "BYE": st.just(Bye()),
    "WELCOME": WELCOMES,
    "BATCH": BATCHES,
    "FAIL": FAILS,
    "PONG": st.builds(Pong, progress=NATURALS, queue=NATURALS, idle=NATURALS),
    "DRAIN": st.just(Drain()),
    "REJECT": REJECTS,
}
MESSAGES = st.one_of(*KINDS.values())
WELCOME = Welcome(
    server="cpu-0",
    boot="b",
    stream="train",
    fields=(FieldSpec("image", "uint8", (3, 224, 224)), FieldSpec("label", "int64", ())),
    batch_size=256,
    catalog="c0ffee",
    fingerprint="f",
    shards=1000,
    workers=16,
    counts=True,
)
ONE_OF_EACH: list[Message] = [
    Hello(stream="train", catalog="c0ffee"),
    Get(stream="train", fingerprint="f", seed=1, epoch=2, batch=3, spans=4, on_error="skip", attempt=5),
    Cancel(epoch=2, batch=3),
    Ping(),
    Bye(),
    WELCOME,
    Batch(
        epoch=2,
        batch=3,
        attempt=5,
        tensors=(TensorSpec("uint8", (4, 3, 224, 224)), TensorSpec("int64", (4,))),
        keys=20,
        missing=1,
        skipped=(Skipped("a.tar", "0003", "truncated"),),
    ),
    Fail(epoch=2, batch=3, attempt=5, retryable=False, reason="truncated", shard="a.tar", key="0003"),
    Pong(progress=7, queue=2),
    Drain(),
    Reject(code="stream", reason="no stream 'train'"),
]


def header(**items: object) -> bytes:
    return bytes(msgpack.packb({"v": limits.PROTOCOL_VERSION, **items}))


def decodes_or_raises(frame: bytes) -> None:
    """Decode what may be anything. Only a ProtocolError may come of it, or a message that stays what it is."""
    try:
        message = decode(frame)
    except ProtocolError:
        return
    assert message.payload_bytes <= limits.BLOCK_BYTES
    assert decode(encode(message)) == message


# There and back.


@pytest.mark.parametrize("kind", sorted(KINDS))
@settings(deadline=None)
@given(st.data())
def test_decode_undoes_encode(kind: str, data: st.DataObject) -> None:
    """Every message of every type comes back equal, within its header's limit, from bytes and from memory alike."""
    message = data.draw(KINDS[kind])
    frame = encode(message)
    assert message.type == kind
    assert len(frame) <= limits.HEADER_BYTES
    assert decode(frame) == message
    assert decode(memoryview(bytearray(frame))) == message


def test_every_message_is_tested_here() -> None:
    """Both collections above name each type once."""
    kinds = sorted(cls.type for cls in get_args(Message))
    assert sorted(KINDS) == kinds == sorted(message.type for message in ONE_OF_EACH)


@pytest.mark.parametrize("rank", range(limits.RANK + 1))
@pytest.mark.parametrize("dtype", sorted(ITEM_BYTES))
def test_every_dtype_and_rank_travels(dtype: str, rank: int) -> None:
    """The whole table, scalars and the largest rank included."""
    tensor = TensorSpec(dtype, tuple(range(2, 2 + rank)))
    message = Batch(epoch=0, batch=0, attempt=1, tensors=(tensor,), keys=0)
    assert decode(encode(message)) == message


def test_the_largest_batch_header_fits() -> None:
    """The bound that HEADER_BYTES is derived from holds: under 12 KiB."""
    worst = Batch(
        epoch=limits.INT63,
        batch=limits.INT63,
        attempt=limits.INT63,
        tensors=(TensorSpec("complex128", (0,) + (2**40,) * (limits.RANK - 1)),) * limits.FIELDS,
        keys=limits.KEYS_BYTES,
        missing=limits.BATCH_SAMPLES,
        skipped=(Skipped("s" * limits.KEY_BYTES, "k" * limits.KEY_BYTES, "r" * limits.SKIP_REASON_BYTES),)
        * limits.SKIPPED,
    )
    assert len(encode(worst)) < 12 * 1024
    assert decode(encode(worst)) == worst


def test_the_largest_welcome_header_fits() -> None:
    """CHANNELS is small enough that every field of a stream may be one to finish."""
    name = "n" * limits.NAME_BYTES
    shape = (limits.CHANNELS, 2**14, 2**15)
    numbers = (0.1,) * limits.CHANNELS
    worst = replace(
        WELCOME,
        server=name,
        boot=name,
        stream=name,
        catalog=name,
        fingerprint=name,
        fields=(FieldSpec(name, "uint8", shape, True, numbers, numbers),) * limits.FIELDS,
        shards=limits.SHARDS,
    )
    assert decode(encode(worst)) == worst


def test_a_row_leaves_room_for_the_batch_dimension() -> None:
    """A field that is announced can also be sent: its rows have the largest rank at most."""
    wide = replace(WELCOME, fields=(FieldSpec("x", "uint8", (1,) * limits.RANK),))
    with pytest.raises(ProtocolError, match=r"WELCOME\.fields\[0\]\.shape: expected an array of at most 7 items"):
        decode(encode(wide))


@pytest.mark.parametrize(
    ("field", "says"),
    [
        (FieldSpec("x", "float32", (2**30 + 1,)), r"no row of shape \[1073741825\] fits 4294967296 bytes"),
        (FieldSpec("x", "uint8", (0, 2**40, 2**40)), r"no row of shape \[0, 1099511627776, 1099511627776\] fits"),
        (FieldSpec("x", "uint8", (3, 8), channels_last=True), "a shape of 2 dimensions has no channels"),
        (FieldSpec("x", "uint8", (2, 3, 8, 8), scale=(1.0,) * 2, bias=(0.0,) * 2), "a shape of 4 dimensions has no ch"),
        (FieldSpec("x", "uint8", (3, 8, 8), scale=(1.0,) * 3), "scale and bias are not one number for each channel"),
        (FieldSpec("x", "uint8", (3, 8, 8), bias=(1.0,)), "scale and bias are not one number for each channel"),
        (FieldSpec("x", "uint8", (3, 8, 8), scale=(1.0,), bias=(0.0,)), "scale and bias are not one number for each"),
        (FieldSpec("x", "int16", (1, 8, 8), scale=(1.0,), bias=(0.0,)), "rows of int16 cannot be finished, only those"),
        (FieldSpec("x", "uint8", (9, 8, 8), scale=(1.0,) * 9, bias=(0.0,) * 9), "expected an array of at most 8 items"),
    ],
)
def test_a_field_whose_parts_do_not_agree_is_refused(field: FieldSpec, says: str) -> None:
    """What a client could not do is found when it is announced, not when it comes."""
    with pytest.raises(ProtocolError, match=rf"^WELCOME\.fields\[1\]\S*: {says}"):
        decode(encode(replace(WELCOME, fields=(*WELCOME.fields[:1], field))))


# What a receiver refuses, and what it ignores.


def test_fields_of_a_later_release_are_ignored() -> None:
    """A message may carry more than this release knows."""
    assert decode(header(type="PONG", progress=1, queue=2, shiny=[1, {"a": None}])) == Pong(progress=1, queue=2)


def test_optional_fields_may_be_left_out() -> None:
    """An older or smaller peer need not send what has a default."""
    assert decode(header(type="HELLO")) == Hello()


@pytest.mark.parametrize("message", ONE_OF_EACH, ids=lambda m: m.type)
def test_a_required_field_that_is_missing_is_named(message: Message) -> None:
    """Each message without each of its fields decodes with the default, or says which is missing."""
    whole = msgpack.unpackb(encode(message))
    for field in fields(message):
        items = {name: value for name, value in whole.items() if name != field.name}
        if field.default is field.default_factory:  # both MISSING
            with pytest.raises(ProtocolError, match=f"^{message.type}: {field.name} is missing$"):
                decode(bytes(msgpack.packb(items)))
        else:
            assert getattr(decode(bytes(msgpack.packb(items))), field.name) == field.default


@pytest.mark.parametrize("message", ONE_OF_EACH, ids=lambda m: m.type)
@pytest.mark.parametrize("wrong", [None, -1, 1.5, b"x", "x" * 2000, [None], [[1]] * 40, {"a": 1}], ids=repr)
def test_a_field_of_the_wrong_kind_is_named(message: Message, wrong: object) -> None:
    """No field of any message takes a value of a kind that it is not."""
    whole = msgpack.unpackb(encode(message))
    for field in fields(message):
        with pytest.raises(ProtocolError, match=rf"^{message.type}\.{field.name}\b.*: expected "):
            decode(bytes(msgpack.packb({**whole, field.name: wrong})))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"", "header: not msgpack"),
        (b"\xc1", "header: not msgpack"),
        (b"\x81\xa1v", "header: not msgpack"),
        (encode(Ping()) + b"\0", "header: not msgpack"),
        (b"\xc0", "header: expected a map, got NoneType"),
        (b"\x93\x01\x02\x03", "header: expected a map, got tuple"),
        (b"\x81\x01\x01", "header: not msgpack"),  # keys are strings
        (b"\x81\xa1v\xa1\xff", "header: not msgpack"),  # strings are UTF-8
        (b"\x81\xa1v\xc7\x00\xff", "header: not msgpack"),  # an empty timestamp
        (b"\x81\xa1v\xd6\xff\0\0\0\0", "header: not msgpack"),  # a timestamp
        (b"\x80", "header.v: expected the protocol version, an integer"),
        (b"\x81\xa1v\xa11", "header.v: expected the protocol version, an integer"),
        (b"\x81\xa1v\xc3", "header.v: expected the protocol version, an integer"),
        (b"\x81\xa1v\x01", "header.type: expected one of HELLO, GET, CANCEL"),
        (header(type="CATALOGUE"), "header.type: expected one of HELLO"),
        (header(type=["HELLO"]), "header.type: expected one of HELLO"),
    ],
)
def test_a_header_that_is_none_is_refused(frame: bytes, message: str) -> None:
    """Each step of the way from bytes to a message has its own complaint."""
    with pytest.raises(ProtocolError, match=message):
        decode(frame)


@pytest.mark.parametrize("theirs", [-1, 0, limits.PROTOCOL_VERSION + 1, 2**64 - 1])
def test_another_version_is_told_from_garbage(theirs: int) -> None:
    """The version is looked at before anything that a version may change."""
    with pytest.raises(VersionMismatch) as caught:
        decode(bytes(msgpack.packb({"v": theirs, "type": "WHATEVER"})))
    assert (caught.value.theirs, caught.value.ours) == (theirs, limits.PROTOCOL_VERSION)


def test_a_header_has_a_largest_size() -> None:
    """It is refused before it is parsed; the limit itself passes."""
    filler = limits.HEADER_BYTES - len(header(type="PING", x="")) - 2  # a long string's length takes two bytes more
    largest = header(type="PING", x="x" * filler)
    assert len(largest) == limits.HEADER_BYTES
    assert decode(largest) == Ping()
    with pytest.raises(ProtocolError, match="16385 bytes exceed 16384"):
        decode(header(type="PING", x="x" * (filler + 1)))


def test_a_payload_has_a_largest_size() -> None:
    """A batch larger than a block is refused by its header, before memory is found for it."""
    largest = Batch(epoch=0, batch=0, attempt=1, tensors=(TensorSpec("uint8", (limits.BLOCK_BYTES,)),), keys=0)
    assert decode(encode(largest)) == largest
    with pytest.raises(ProtocolError, match="a payload of 4294967297 bytes exceeds 4294967296"):
        decode(encode(replace(largest, keys=1)))


@pytest.mark.parametrize("depth", [1, 500, 1000, 1019, 1020, 1021, 1022, 1023, 1024, 5000])
def test_deep_nesting_is_refused_like_anything_else(depth: int) -> None:
    """However deep a peer nests, in arrays or maps, there is no RecursionError."""
    start = b"\x83\xa1v\x01\xa4type\xa5HELLO\xa6stream"
    for nested in (b"\x91" * depth + b"\0", b"\x81\xa0" * depth + b"\0"):
        with pytest.raises(ProtocolError):
            decode(start + nested)


# Bytes that no honest peer sent.


@unhurried
@given(st.binary(max_size=400))
def test_arbitrary_bytes_decode_or_raise_protocol_error(frame: bytes) -> None:
    """Noise is refused, and in no other way."""
    decodes_or_raises(frame)


STRUCTURES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=2)),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=20,
)


@unhurried
@given(STRUCTURES)
def test_arbitrary_msgpack_decodes_or_raises_protocol_error(structure: object) -> None:
    """Well-formed msgpack that is no message is refused, and in no other way."""
    decodes_or_raises(bytes(msgpack.packb(structure)))


@unhurried
@given(st.sampled_from(ONE_OF_EACH), st.data())
def test_messages_with_arbitrary_values_decode_or_raise_protocol_error(message: Message, data: st.DataObject) -> None:
    """Anything may stand in any field."""
    items: dict[str, Any] = msgpack.unpackb(encode(message))
    for name in data.draw(st.sets(st.sampled_from(sorted(items)), min_size=1)):
        items[name] = data.draw(STRUCTURES)
    decodes_or_raises(bytes(msgpack.packb(items)))


@unhurried
@given(MESSAGES, st.data())
@example(Ping(), None)
def test_mutated_headers_decode_or_raise_protocol_error(message: Message, data: st.DataObject | None) -> None:
    """Bytes flipped, lost, inserted, or spliced in from another message: an error or a message, nothing else."""
    frame = bytearray(encode(message))
    if data is None:  # every single bit of a small one
        for bit in range(8 * len(frame)):
            decodes_or_raises(bytes(b ^ (1 << bit % 8) if i == bit // 8 else b for i, b in enumerate(frame)))
        return
    places = st.integers(0, len(frame))
    for _ in range(data.draw(st.integers(1, 4))):
        start, stop = sorted((data.draw(places), data.draw(places)))
        match data.draw(st.sampled_from(["flip", "truncate", "remove", "insert", "splice"])):
            case "flip" if start < len(frame):
                frame[start] ^= data.draw(st.integers(1, 255))
            case "truncate":
                del frame[stop:]
            case "remove":
                del frame[start:stop]
            case "insert":
                frame[start:start] = data.draw(st.binary(max_size=20))
            case _:
                other = encode(data.draw(st.sampled_from(ONE_OF_EACH)))
                frame[start:stop] = other[start : start + data.draw(st.integers(0, 40))]
    decodes_or_raises(bytes(frame))


# Payload.


def of_length(n: int) -> Message:
    return Batch(epoch=0, batch=0, attempt=1, tensors=(), keys=n)


@unhurried
@given(st.binary(max_size=300), st.integers(1, 400))
def test_join_undoes_cut(payload: bytes, frame_bytes: int) -> None:
    """A payload comes back whole, however it was cut."""
    frames = list(cut(memoryview(payload), frame_bytes))
    assert join(of_length(len(payload)), frames) == payload
    assert all(0 < len(frame) <= frame_bytes for frame in frames)


@unhurried
@given(st.binary(max_size=300), st.lists(st.integers(0, 300)))
def test_join_takes_any_cut(payload: bytes, places: list[int]) -> None:
    """The sender cuts where it likes, empty frames included."""
    ends = sorted(min(place, len(payload)) for place in places)
    frames = [payload[a:b] for a, b in zip([0, *ends], [*ends, len(payload)], strict=True)]
    assert join(of_length(len(payload)), frames) == payload


def test_cutting_copies_nothing() -> None:
    """Every frame is a view of the block's own memory, and they follow each other in it."""
    block = np.arange(1000, dtype=np.uint8)
    frames = [np.frombuffer(frame, np.uint8) for frame in cut(memoryview(block.data), 300)]
    assert [len(frame) for frame in frames] == [300, 300, 300, 100]
    assert [f.ctypes.data - block.ctypes.data for f in frames] == [0, 300, 600, 900]


def test_one_frame_is_joined_without_a_copy() -> None:
    """It is handed back as it came."""
    frame = memoryview(bytearray(10))
    assert join(of_length(10), [frame]) is frame


def test_frames_have_the_documented_size_unless_told_otherwise() -> None:
    """FRAME_BYTES each, the last one shorter."""
    sizes = [len(frame) for frame in cut(memoryview(bytes(2 * limits.FRAME_BYTES + 1)))]
    assert sizes == [limits.FRAME_BYTES, limits.FRAME_BYTES, 1]


@pytest.mark.parametrize("frames", [[], [b""], [b"123456789"], [b"12345", b"678901"], [b"12345", b"67890", b"1"]])
def test_a_payload_of_the_wrong_length_is_refused(frames: list[bytes]) -> None:
    """Too short and too long, in one frame and in several."""
    with pytest.raises(ProtocolError, match=r"BATCH: a payload of \d+ bytes, where 10 were announced"):
        join(of_length(10), frames)


# The seal.


@pytest.mark.parametrize("bit", range(64))
def test_any_flipped_bit_of_a_header_or_its_seal_is_seen(bit: int) -> None:
    """Whichever it is; that of a payload's checksum shows when the payload is there."""
    header, seal = codec.seal(Cancel(epoch=3, batch=17), codec.checksum(b"payload"))
    damaged = bytearray(header)
    damaged[bit % len(header)] ^= 1 << bit % 8
    with pytest.raises(Damaged, match="its checksum is wrong"):
        codec.unseal(bytes(damaged), seal)
    sealed = bytearray(seal)
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Damaged, match="its checksum is wrong"):
        codec.unseal(header, bytes(sealed))
    sealed = bytearray(seal)
    sealed[8 + bit // 8] ^= 1 << bit % 8
    message, checksum = codec.unseal(header, bytes(sealed))
    with pytest.raises(Damaged, match="CANCEL: the checksum of its payload is wrong"):
        codec.verify(message, b"payload", checksum)


def test_what_cannot_be_header_and_seal_is_damaged() -> None:
    """Frames whose borders have moved are no violation by the peer."""
    header, seal = codec.seal(Cancel(epoch=3, batch=17))
    for no_seal in (b"", seal[:-1], seal + b"x"):
        with pytest.raises(Damaged, match=f"seal: {len(no_seal)} bytes, not 16"):
            codec.unseal(header, no_seal)


def test_a_header_that_was_sent_like_that_is_no_damage() -> None:
    """It breaks the protocol, or is another version of it."""
    for header, error in ((b"\xc1", ProtocolError), (b"\x82\xa1v\x09\xa4type\xa4PING", VersionMismatch)):
        seal = struct.pack("<QQ", codec.checksum(header), 0)
        with pytest.raises(error) as raised:
            codec.unseal(header, seal)
        assert type(raised.value) is error


def test_a_checksum_does_not_depend_on_the_pieces() -> None:
    """A batch is sealed in two: its tensors and its keys."""
    assert codec.checksum(b"ab", b"", memoryview(b"c")) == codec.checksum(b"abc") == xxhash.xxh3_64_intdigest(b"abc")
