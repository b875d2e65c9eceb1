"""A server that does whatever a test says, in a thread: for what no real server does."""

import struct
import threading
from collections.abc import Callable, Sequence
from typing import Final, Self

import msgpack
import numpy as np
import zmq

from feedmill_protocol import codec
from feedmill_protocol.errors import ProtocolError
from feedmill_protocol.messages import Batch, Cancel, Get, Hello, Message, Ping, Pong, Welcome
from feedmill_protocol.spans import count, unpack
from feedmill_protocol.tensors import FieldSpec, offsets
from integration.processes import wait_until

COUNTS: Final = np.array([30, 10], np.uint32)
FIELDS: Final = (FieldSpec("cls", "int64", ()),)
WELCOME: Final = Welcome(
    server="fake",
    boot="1",
    stream="train",
    fields=FIELDS,
    batch_size=8,
    catalog="c",
    fingerprint="f",
    shards=len(COUNTS),
    workers=1,
    counts=True,
)

Frames = list[bytes]
Answer = Callable[[Message, bytes], Sequence[Frames]]
"""From a client's message and its payload to the messages that it is sent, each as frames."""


def frames(message: Message, payload: bytes = b"") -> Frames:
    """Return the frames of a message."""
    sealed = codec.seal(message, codec.checksum(payload))
    return [*sealed, payload] if payload else sealed


def sealed(header: object) -> Frames:
    """Return the frames of a header of any content."""
    packed: bytes = msgpack.packb(header)
    return [packed, struct.pack("<QQ", codec.checksum(packed), codec.checksum())]


def batch(get: Get, payload: bytes, **changes: object) -> Batch:
    """Return what answers a GET: as many rows as it asks for."""
    rows = count(unpack(payload, COUNTS))
    honest = {
        "epoch": get.epoch,
        "batch": get.batch,
        "attempt": get.attempt,
        "tensors": tuple(field.rows(rows) for field in FIELDS),
        "keys": 2 * rows - 1,
    }
    return Batch(**honest | changes)  # type: ignore[arg-type]


def block(message: Batch) -> bytes:
    """Return the payload of a batch: zeros, and keys of one letter."""
    rows = message.tensors[0].shape[0]
    return bytes(offsets(message.tensors)[1]) + "\0".join("k" * rows).encode()


def honest(message: Message, payload: bytes) -> Sequence[Frames]:
    """Answer as a server should."""
    match message:
        case Hello():
            return [frames(WELCOME, COUNTS.astype("<u4").tobytes())]
        case Get():
            answer = batch(message, payload)
            return [frames(answer, block(answer))]
        case Ping():
            return [frames(Pong(progress=0, queue=0))]
        case _:
            return []


class FakeServer:
    """A ROUTER on a port of its own that answers with ``answer``. Use it as a context manager."""

    def __init__(self, answer: Answer) -> None:
        self.heard: list[Message] = []
        self._answer = answer
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind("tcp://127.0.0.1:*")
        self.url = self._socket.get_string(zmq.LAST_ENDPOINT)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fake server")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join(5)
        assert not self._thread.is_alive()
        self._context.destroy(linger=0)

    @property
    def gets(self) -> list[Get]:
        """Every GET so far."""
        return [message for message in self.heard if isinstance(message, Get)]

    @property
    def cancels(self) -> list[Cancel]:
        """Every CANCEL so far."""
        return [message for message in self.heard if isinstance(message, Cancel)]

    def wait_idle(self) -> None:
        """Wait until the client has had nothing to say but a few pings."""
        begun = len(self.heard)
        wait_until(
            lambda: len(self.heard) >= begun + 3 and all(isinstance(m, Ping) for m in self.heard[-2:]),
            10,
            "the client only pings",
        )

    def _run(self) -> None:
        while not self._closing.is_set():
            if not self._socket.poll(50):
                continue
            client, header, seal, *rest = self._socket.recv_multipart()
            try:
                message, _ = codec.unseal(header, seal)
            except ProtocolError:
                continue
            self.heard.append(message)
            for answer in self._answer(message, b"".join(rest)):
                self._socket.send_multipart([client, *answer])


def silence(_message: Message, _payload: bytes) -> Sequence[Frames]:
    """Answer nothing."""
    return []
