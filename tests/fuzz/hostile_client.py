"""Fuzzing of the server: whatever clients send, it is answered or refused, memory stays bounded, others are served.

The real `Server` hears frames for the real broker; workers are made up, and memory is counted.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import zmq

from feedmill_protocol import codec, limits, spans
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
    Welcome,
)
from feedmill_protocol.tensors import FieldSpec, offsets
from feedmill_server.broker import CLIENT_SILENCE, Bad, Broker, Stream
from feedmill_server.complaints import Complaints
from feedmill_server.server import Server
from fuzz.clock import CLOCK
from fuzz.frames import Sent, harmed, mutated, sent, whole

__all__ = ["converse"]

FIELDS: Final = (FieldSpec("x", "float32", (4,)), FieldSpec("n", "int64", ()))
COUNTS: Final = np.array([100, 0, 400], np.uint32)
MEMORY: Final = 64 * 1024
CLIENTS: Final = (b"ann", b"bob", b"eve")
GOOD: Final = b"gus"


@dataclass(eq=False)
class _Slot:
    nbytes: int
    pins: int = 0

    def checksum(self, nbytes: int, _trailer: bytes) -> int:
        assert nbytes <= self.nbytes
        return 0

    def compact(self, _fields: Sequence[FieldSpec], samples: int, missing: Sequence[int]) -> None:
        assert 0 < len(missing) <= samples


class _Pool:
    """Memory that is counted."""

    def __init__(self) -> None:
        self.max_bytes = MEMORY
        self.lent: set[_Slot] = set()

    def take(self, nbytes: int) -> _Slot | None:
        if sum(slot.nbytes for slot in self.lent) + nbytes > self.max_bytes:
            return None
        slot = _Slot(nbytes)
        self.lent.add(slot)
        return slot

    def give(self, slot: _Slot) -> None:
        assert not slot.pins
        self.lent.remove(slot)


def _stream(name: str, number: int) -> Stream:
    return Stream(
        number=number,
        name=name,
        fields=FIELDS,
        batch_size=16,
        shards=("a.tar", "b.tar", "c.tar"),
        counts=COUNTS,
        catalog="c",
        fingerprint="f",
    )


class _Conversation:
    """A server, its workers, and clients of which one is good."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        CLOCK.seconds = 0.0
        self.pool = _Pool()
        streams = [_stream("train", 0), _stream("val", 1)][: draw.choice((1, 1, 2))]
        self.broker: Broker[_Slot] = Broker(streams, self.pool, server="host", boot="1", workers=2)
        self.answers: Counter[str] = Counter()
        server = Server.__new__(Server)
        server._observer = None
        server._broker = self.broker  # type: ignore[assignment] # its slots are no memory files
        server._complaints = Complaints()
        self.server = server
        for client in CLIENTS[: draw.randrange(4)]:
            self.hear(client, whole(*sent(Hello(stream="train"))))
            for batch in range(draw.choice((0, 1, 3, 8))):
                self.hear(client, whole(*self.get(batch)))
        for _ in range(draw.choice((0, 1, 4))):
            self.happen()

    def get(self, batch: int) -> Sent:
        draw = self.draw
        rows = []
        for _ in range(draw.choice((1, 1, 2, 5))):
            shard = draw.choice((0, 2))
            start = draw.randrange(90)
            rows.append((shard, start, start + draw.randint(1, 10)))
        get = Get(
            stream="train",
            fingerprint="f",
            seed=draw.choice((1, 2)),
            epoch=draw.choice((0, 1)),
            batch=batch,
            spans=len(rows),
            on_error=draw.choice(("raise", "skip")),
            attempt=draw.randrange(4),
        )
        return sent(get, spans.pack(np.array(rows, np.uint32)))

    def happen(self) -> None:
        """Let something happen that is no message."""
        draw, broker = self.draw, self.broker
        match draw.randrange(8):
            case 0:
                CLOCK.seconds += draw.choice((0.3, 6.0, 11.0))
                broker.tick(CLOCK.seconds)
            case 1:
                broker.lost(draw.choice((1, 2)), "killed", draw.randrange(-1, 8), "0:0")
            case 2:
                broker.forget(draw.choice(CLIENTS))
            case 3:
                broker.next_part(draw.choice((1, 2)))
            case _:
                self.work(draw.choice((1, 2)))
        self.collect()

    def work(self, worker: int) -> bool:
        """Have a worker finish what it has in hand, or its next part; return whether there was anything to do."""
        if not self.broker.assigned(worker) and self.broker.next_part(worker) is None:
            return False
        work = self.broker._assigned[worker][0]
        keys = [f"{shard}:{index}" for shard, index in work.samples.tolist()]
        bad = [Bad(work.first, 0, keys[0], "broken")] if self.draw.random() < 0.05 else []
        self.broker.done(worker, keys, bad)
        return True

    def collect(self) -> None:
        """Send the replies: each must be one that a client understands, and the memory in use is what was given."""
        replies = self.broker.replies
        while replies:
            reply = replies.popleft()
            header = codec.encode(reply.message)
            assert codec.decode(header) == reply.message
            assert reply.message.payload_bytes >= len(reply.trailer)
            self.answers[f"{reply.client.decode()} {reply.message.type}"] += 1
            self.broker.sent(reply)
        assert sum(slot.nbytes for slot in self.pool.lent) <= MEMORY
        assert all(len(known.open) <= limits.OUTSTANDING for known in self.broker._clients.values())

    def valid(self) -> list[Sent]:
        """Return what may be said just now, and what only servers say."""
        name: dict[str, Any] = {"epoch": 0, "batch": 1, "attempt": 1}
        messages: list[Message] = [
            Hello(),
            Hello(stream="train", catalog="c"),
            Ping(),
            Bye(),
            Cancel(epoch=0, batch=self.draw.randrange(8)),
            Cancel(epoch=1, batch=self.draw.randrange(8)),
            Pong(progress=1, queue=1),
            Drain(),
            Reject(code="limit", reason="no"),
            Fail(**name, retryable=True, reason="x"),
            Batch(**name, tensors=tuple(field.rows(2) for field in FIELDS), keys=3),
            Welcome(
                server="host",
                boot="1",
                stream="train",
                fields=FIELDS,
                batch_size=8,
                catalog="c",
                fingerprint="f",
                shards=3,
                workers=2,
                counts=False,
            ),
        ]
        return [sent(message) for message in messages] + [self.get(self.draw.randrange(8)) for _ in range(12)]

    def hear(self, client: bytes, message: list[bytes]) -> str:
        """Have the server hear a message; return what the client is told at once."""
        before = self.answers.copy()
        self.server._hear_client(client, [zmq.Frame(frame) for frame in message])
        self.collect()
        told = self.answers - before
        assert all(who.split()[0] == client.decode() for who in told), "only who has asked is told anything"
        return " ".join(sorted(who.split()[1] for who in told)) or "nothing"

    def serve_another(self) -> None:
        """Have a good client come, ask and get."""
        draining = self.broker.draining
        self.hear(GOOD, whole(*sent(Hello(stream="train"))))
        self.hear(GOOD, whole(*self.get(0)))
        for worker in (1, 2) * 10_000:
            if not self.work(worker) and not any(map(self.broker.assigned, (1, 2))):
                break
            self.collect()
        self.collect()
        assert draining or self.answers["gus BATCH"] + self.answers["gus FAIL"] == 1, self.answers
        assert self.broker.open == 0

    def forget_all(self) -> None:
        """Have everybody fall silent: nothing must be left but what is cached."""
        self.broker.tick(CLOCK.seconds + CLIENT_SILENCE + 1)
        self.collect()
        builds = self.broker._builds.values()
        assert not self.broker.clients
        assert not self.broker._building
        assert {build.slot for build in builds} == self.pool.lent
        assert sum(offsets(f.rows(build.rows) for f in FIELDS)[1] for build in builds) <= MEMORY


def converse(draw: random.Random) -> Counter[str]:
    """Have a server hear some messages, most of them mutated; return what each was answered."""
    server = _Conversation(draw)
    ends: Counter[str] = Counter()
    for _ in range(24):
        valid = server.valid()
        one = draw.choice(valid)
        if draw.random() < 0.85:
            one = mutated(one, valid, draw)
        ends[server.hear(draw.choice(CLIENTS), harmed(*one, draw))] += 1
        if draw.random() < 0.2:
            server.happen()
    server.serve_another()
    server.forget_all()
    return ends
