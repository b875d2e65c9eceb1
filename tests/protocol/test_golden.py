"""Golden frames: the bytes of messages, held for ever and for every language.

`golden.json` holds each message in readable form (`message` and `content`) and as the bytes that travel (`header` and
`payload`, in hex). The readable form is the source. After a change of the format that is meant:

    PYTHONPATH=protocol python tests/protocol/test_golden.py

writes the bytes anew from it; look at the diff, and ask whether limits.PROTOCOL_VERSION must change.
"""

import json
import struct
from pathlib import Path
from typing import Any, get_args

import msgpack
import numpy as np
import pytest

from feedmill_protocol import limits, spans
from feedmill_protocol.codec import checksum, cut, decode, encode, join, seal, unseal, verify
from feedmill_protocol.messages import Batch, Message
from feedmill_protocol.tensors import offsets

PATH = Path(__file__).with_name("golden.json")
GOLDEN: list[dict[str, Any]] = json.loads(PATH.read_text(encoding="utf-8"))
FORMATS = {"uint8": "B", "int64": "q", "float32": "f", "float16": "e"}  # of the struct module; as many as are used

golden = pytest.mark.parametrize("item", GOLDEN, ids=[item["about"] for item in GOLDEN])


def payload_of(item: dict[str, Any]) -> bytes:
    """Build the bytes of a payload from its readable form, without feedmill's own code."""
    content = item["content"]
    if "spans" in content:
        return b"".join(struct.pack("<3I", *span) for span in content["spans"])
    if "counts" in content:
        return b"".join(struct.pack("<I", count) for count in content["counts"])
    if "tensors" not in content:
        return b""
    block = b""
    for (dtype, _), elements in zip(item["message"]["tensors"], content["tensors"], strict=True):
        block += struct.pack(f"<{len(elements)}{FORMATS[dtype]}", *elements)
        block += bytes(-len(block) % limits.ALIGNMENT)
    return block + "\0".join(content["keys"]).encode()


def message_of(item: dict[str, Any]) -> Message:
    return decode(bytes(msgpack.packb({"v": limits.PROTOCOL_VERSION, **item["message"]})))


def test_every_message_has_a_golden_frame() -> None:
    """And no two are the same."""
    assert {item["message"]["type"] for item in GOLDEN} == {cls.type for cls in get_args(Message)}
    assert len({(item["header"], item["payload"]) for item in GOLDEN}) == len(GOLDEN)


@golden
def test_encoding_gives_the_golden_bytes(item: dict[str, Any]) -> None:
    """Byte for byte, header and payload."""
    assert encode(message_of(item)).hex() == item["header"]
    assert payload_of(item).hex() == item["payload"]


@golden
def test_decoding_the_golden_bytes_gives_the_message(item: dict[str, Any]) -> None:
    """Every field has the value that the readable form gives it, and the payload is as long as announced."""
    header, payload = bytes.fromhex(item["header"]), bytes.fromhex(item["payload"])
    message = decode(header)
    assert message == message_of(item)
    assert join(message, list(cut(memoryview(payload), 50))) == payload


@golden
def test_a_golden_seal_is_right(item: dict[str, Any]) -> None:
    """XXH3-64 of the header and of the payload, little-endian."""
    header, payload = bytes.fromhex(item["header"]), bytes.fromhex(item["payload"])
    assert seal(message_of(item), checksum(payload)) == [header, bytes.fromhex(item["seal"])]
    message, sealed = unseal(header, bytes.fromhex(item["seal"]))
    assert message == message_of(item)
    verify(message, payload, sealed)


@golden
def test_a_golden_header_is_plain_msgpack(item: dict[str, Any]) -> None:
    """Any msgpack library reads the readable form out of it."""
    assert msgpack.unpackb(bytes.fromhex(item["header"])) == {"v": 1, **item["message"]}


@pytest.mark.parametrize("item", [item for item in GOLDEN if item["message"]["type"] == "GET"])
def test_golden_spans_are_read(item: dict[str, Any]) -> None:
    """In their order."""
    found = spans.unpack(bytes.fromhex(item["payload"]), np.full(1000, 2000, np.uint32))
    assert found.tolist() == item["content"]["spans"]


@pytest.mark.parametrize("item", [item for item in GOLDEN if item["message"]["type"] == "BATCH"])
def test_golden_tensors_lie_where_offsets_says(item: dict[str, Any]) -> None:
    """Each at the place and with the elements that the readable form gives, the keys behind the last."""
    message, block = decode(bytes.fromhex(item["header"])), bytes.fromhex(item["payload"])
    assert isinstance(message, Batch)
    starts, end = offsets(message.tensors)
    for tensor, start, elements in zip(message.tensors, starts, item["content"]["tensors"], strict=True):
        dtype = np.dtype(tensor.dtype).newbyteorder("<")
        assert np.frombuffer(block, dtype, len(elements), start).tolist() == elements
    assert block[end:].decode().split("\0") == item["content"]["keys"]


def main() -> None:
    """Write the bytes of every message anew."""
    items = []
    for item in GOLDEN:
        made = {**item, "header": encode(message_of(item)).hex(), "payload": payload_of(item).hex()}
        made["seal"] = seal(message_of(item), checksum(payload_of(item)))[1].hex()
        lines = (f"    {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in made.items())
        items.append("  {\n" + ",\n".join(lines) + "\n  }")
    PATH.write_text("[\n" + ",\n".join(items) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
