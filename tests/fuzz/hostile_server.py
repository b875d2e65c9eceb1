"""Fuzzing of the client: whatever a server sends, it is taken, dropped, or a FeedmillError, and memory stays bounded.

The real `Connection` takes frames from a socket that is none, for the real ledger, whose clock is set by hand.
"""

import random
import threading
from collections import Counter, deque
from math import inf
from typing import Any, Final

import numpy as np
import torch
import zmq

from feedmill.connection import Connection
from feedmill.tensors import Tensors
from feedmill_protocol import codec, limits, spans
from feedmill_protocol.errors import FeedmillError, ServerUnavailable
from feedmill_protocol.ledger import Ledger
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
from feedmill_protocol.plan import Plan
from feedmill_protocol.tensors import FieldSpec, offsets
from feedmill_sockets.inflow import Inflow
from fuzz.clock import CLOCK
from fuzz.frames import Sent, harmed, mutated, sent, whole

__all__ = ["converse"]

COUNTS: Final = np.array([30, 0, 10], np.uint32)
PICTURE: Final = FieldSpec("x", "uint8", (3, 4, 4), True, (0.5, 0.5, 0.25), (-1.0, 0.0, 1.0))
FIELDS: Final = (
    (PICTURE, FieldSpec("n", "int64", ())),
    (FieldSpec("n", "float16", (1, 2, 1, 2, 1, 2, 1)), FieldSpec("m", "bool", (3,))),
    (FieldSpec("none", "float32", (0, 2**28, 4)),),
    (FieldSpec("none", "uint8", (3, 0, 4), True, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)),),
    (),
)
BATCH_BYTES: Final = 2**20
"""What a valid block has at most here."""


class _Socket:
    """One message, frame by frame, as `Connection` reads it."""

    def __init__(self, message: list[bytes]) -> None:
        self.left = deque(message)
        self._begun = False

    def recv(self, _flags: int = 0) -> bytes:
        if not self.left:
            raise zmq.Again
        self._begun = True
        return self.left.popleft()

    def recv_into(self, room: memoryview, *, flags: int) -> int:
        frame = self.recv()
        room[: len(frame)] = frame[: len(room)]
        return len(frame)

    def get(self, option: int) -> int:
        assert option == zmq.RCVMORE
        return bool(self._begun and self.left)


class _Ledger(Ledger):
    """A ledger that tells whether a message has come as far as to it."""

    reached = False

    def received(self, server: str, message: Message, now: float, *, intact: bool = True) -> bool:
        self.reached = True
        return super().received(server, message, now, intact=intact)

    def garbled(self, server: str, now: float) -> None:
        self.reached = True
        super().garbled(server, now)


class _Conversation:
    """A client, of which everything is real but the socket and the clock."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.gets: list[tuple[str, Get, int]] = []  # whom, what, and how many samples that is
        self.most = 0  # bytes that were asked for at once
        self.planned = False
        self.fields = draw.choice(FIELDS) if draw.random() < 0.3 else FIELDS[0]
        CLOCK.seconds = 0.0
        self.tensors = Tensors(torch.device("cpu"), None)
        self.ledger = _Ledger("train", timeout=60.0, now=0.0)
        connection = Connection.__new__(Connection)
        connection._ledger = self.ledger
        connection._allocate = self.allocate
        connection._lock = threading.Condition()
        connection._arrived = {}
        connection._inflow = Inflow(inf)
        connection.contract = None
        self.connection = connection
        for server in ("a", "b"):
            self.ledger.add(server)
            if draw.random() < 0.95:
                self.ledger.connected(server, 0.0)
        for server in ("a", "b"):
            if draw.random() < 0.85:
                self.hear(server, whole(*sent(self.welcome(), COUNTS.tobytes())))
        for batch in range(draw.choice((0, 1, 2, 5))):
            self.want(batch)
        for _ in range(draw.choice((0, 0, 1, 3))):
            self.happen()

    def allocate(self, nbytes: int) -> torch.Tensor:
        self.most = max(self.most, nbytes)
        return self.tensors.allocate(nbytes)

    def welcome(self) -> Welcome:
        return Welcome(
            server="host",
            boot="1",
            stream="train",
            fields=self.fields,
            batch_size=8,
            catalog="c",
            fingerprint="f",
            shards=len(COUNTS),
            workers=2,
            counts=True,
        )

    def want(self, batch: int) -> None:
        first = self.draw.randrange(20)
        samples = np.array([[0, first, first + self.draw.randint(1, 8)], [2, 0, 1]], np.uint32)
        on_error = self.draw.choice(("raise", "skip"))
        get = Get(stream="train", fingerprint="f", seed=1, epoch=0, batch=batch, spans=len(samples), on_error=on_error)
        self.ledger.want(get, spans.pack(samples), spans.count(samples), CLOCK.seconds)
        self.collect()

    def collect(self) -> None:
        """Look at what the ledger wants to send: it must be fit to be sent."""
        while self.ledger.outbox:
            server, message, payload = self.ledger.outbox.popleft()
            header = codec.encode(message)
            assert codec.decode(header) == message
            assert len(payload) == message.payload_bytes
            if isinstance(message, Get):
                self.gets.append((server, message, spans.count(spans.unpack(payload, COUNTS))))

    def happen(self) -> None:
        """Let something happen that is no message."""
        ledger, draw = self.ledger, self.draw
        server = draw.choice(("a", "b"))
        match draw.randrange(7):
            case 0:
                CLOCK.seconds += draw.choice((0.6, 3.0, 20.0))
            case 1:
                ledger.disconnected(server)
            case 2:
                ledger.connected(server, CLOCK.seconds)
            case 3:
                ledger.forget((0, draw.randrange(4)))
            case 4:
                self.want(draw.randrange(6))
            case 5:
                self.hear(server, whole(*sent(Drain())))
            case _:
                if self.gets:
                    server, answer = self.answer(draw.choice(self.gets))
                    self.hear(server, whole(*answer))
        self.tick()

    def tick(self) -> None:
        try:
            self.ledger.tick(CLOCK.seconds)
        except ServerUnavailable:
            CLOCK.seconds = self.ledger._progress_at  # as long as anything can be said
        assert self.ledger.wake_at() >= 0
        self.collect()

    def answer(self, asked: tuple[str, Get, int]) -> tuple[str, Sent]:
        """Return a server that was asked, and a BATCH that it may send."""
        server, get, rows = asked
        fields = self.ledger.contract.fields if self.ledger.contract else self.fields
        missing = self.draw.choice((0, 0, 1)) if get.on_error == "skip" else 0
        tensors = tuple(field.rows(rows - missing) for field in fields)
        size = offsets(tensors)[1]
        keys = "\0".join("k" * (rows - missing)).encode()
        batch = Batch(
            epoch=get.epoch,
            batch=get.batch,
            attempt=get.attempt,
            tensors=tensors,
            keys=len(keys),
            missing=missing,
            skipped=(Skipped("s", "k", "r"),) * missing,
        )
        return server, sent(batch, bytes(size) + keys if size <= BATCH_BYTES else b"")

    def valid(self) -> list[Sent]:
        """Return what may be said just now, and what only clients say."""
        messages: list[Message] = [Pong(progress=self.draw.randrange(9), queue=1), Drain(), Ping(), Bye(), Hello()]
        codes = ("version", "stream", "fingerprint", "limit", "protocol", "damaged")
        messages += [Reject(code=code, reason="no") for code in codes]
        messages.append(Cancel(epoch=0, batch=1))
        for _, get, _ in self.gets[-4:]:
            name: dict[str, Any] = {"epoch": get.epoch, "batch": get.batch, "attempt": get.attempt}
            messages += [get, Fail(**name, retryable=True, reason="x")]
            messages.append(Fail(**name, retryable=False, reason="x", shard="s.tar", key="k"))
        found = [sent(message) for message in messages]
        found.append(sent(self.welcome(), COUNTS.tobytes()))
        answers = [self.answer(asked)[1] for asked in self.gets[-4:]]
        return found + answers * 4

    def hear(self, server: str, message: list[bytes]) -> str:
        """Take a message; return how that ended."""
        socket = _Socket(message)
        self.ledger.reached = False
        self.most = 0
        try:
            self.connection._receive(server, socket)  # type: ignore[arg-type] # all of a socket that is used
        except FeedmillError as error:
            end = type(error).__name__
        else:
            end = "heard"
            assert not socket.left, "the whole message was read"
        self.collect()
        assert self.most <= max(BATCH_BYTES + limits.KEYS_BYTES, 4 * limits.SHARDS), f"{self.most} bytes were allocated"
        self.unpack()
        return end

    def unpack(self) -> None:
        """Do with what has come what a feed does with it."""
        contract = self.connection.contract
        if contract is not None and not self.planned:
            self.planned = True
            try:
                Plan(self.connection.counts, batch_size=contract.batch_size)
            except FeedmillError:
                return
        while self.connection._arrived and contract is not None:
            _, arrived = self.connection._arrived.popitem()
            keys = arrived.keys.decode(errors="replace").split("\0") if arrived.keys else []
            found = self.tensors.unpack(arrived.block, contract.fields, len(keys))
            for tensor, field in zip(self.tensors.finish(found, contract.fields), contract.fields, strict=True):
                assert tuple(tensor.shape) == (len(keys), *field.shape)


def converse(draw: random.Random) -> Counter[str]:
    """Have a client hear some messages, most of them mutated; return how each ended."""
    client = _Conversation(draw)
    ends: Counter[str] = Counter()
    for _ in range(24):
        valid = client.valid()
        one = draw.choice(valid)
        if draw.random() < 0.85:
            one = mutated(one, valid, draw)
        end = client.hear(draw.choice(("a", "b")), harmed(*one, draw))
        reached = client.ledger.reached
        ends[f"{end}, {'by the ledger' if reached else 'at the door'}"] += 1
        if reached and end != "heard":
            break  # the feed has ended with this error
        client.tick()
        if draw.random() < 0.1:
            client.happen()
    return ends
