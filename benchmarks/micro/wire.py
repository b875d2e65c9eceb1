"""Codec, ledger and socket: what a batch costs a client besides its bytes.

The client's side of a batch is the real ledger and codec, against servers that are simulated here and cost nothing:
they answer every request at once. Of 64 ranks, each has a ledger of its own; one is measured, among 64 servers.
"""

import time
from typing import Final

import numpy as np
import zmq

from benchmarks import contest
from feedmill_protocol import codec, spans
from feedmill_protocol.ledger import Ledger
from feedmill_protocol.messages import Batch, Get, Pong, Welcome
from feedmill_protocol.plan import Plan
from feedmill_protocol.tensors import FieldSpec, offsets

from .timing import microseconds

_FIELDS: Final = (
    FieldSpec(
        "jpg",
        "uint8",
        (3, contest.SIDE, contest.SIDE),
        channels_last=True,
        scale=tuple(1 / (255 * s) for s in contest.STD),
        bias=contest.MEAN,
    ),
    FieldSpec("cls", "int64", ()),
)
_BATCHES: Final = 4000
_PREFETCH_PER_SERVER: Final = 2
_BATCH_SECONDS: Final = 0.04
"""Virtual seconds from batch to batch: what a trainer takes for 64 images at 1,600 a second."""


def main() -> None:
    """Run it."""
    given = contest.entry()
    alone, many = _client(1, 1, given.batch), _client(64, 64, given.batch)
    get, batch = _get(given.batch), _batch(given.batch)
    contest.say(
        client_us=alone,
        client_64_us=many,
        client_64_ratio=many / alone,
        seal_get_us=microseconds(codec.seal, [(get,)] * 2000),
        unseal_get_us=microseconds(codec.unseal, [tuple(codec.seal(get))] * 2000),
        seal_batch_us=microseconds(codec.seal, [(batch,)] * 2000),
        unseal_batch_us=microseconds(codec.unseal, [tuple(codec.seal(batch))] * 2000),
        tcp_gbs=_socket(given.batch),
    )


def _get(samples: int) -> Get:
    return Get(stream="train", fingerprint="f" * 32, seed=1, epoch=2, batch=3, spans=samples, attempt=4)


def _batch(samples: int, epoch: int = 2, number: int = 3, attempt: int = 4) -> Batch:
    tensors = tuple(field.rows(samples) for field in _FIELDS)
    return Batch(epoch=epoch, batch=number, attempt=attempt, tensors=tensors, keys=9 * samples - 1)


def _welcome(server: str, shards: int, batch: int) -> Welcome:
    return Welcome(
        server=server,
        boot="b" * 16,
        stream="train",
        fields=_FIELDS,
        batch_size=batch,
        catalog="c" * 32,
        fingerprint="f" * 32,
        shards=shards,
        workers=64,
        counts=True,
    )


def _client(servers: int, ranks: int, batch: int) -> float:
    """Return microseconds of CPU that a client's ledger and codec spend on a batch, pings included."""
    endpoints = [f"tcp://cpu-{n}:7880" for n in range(servers)]
    now = 0.0
    ledger = Ledger("train", timeout=60, now=now)
    for endpoint in endpoints:
        ledger.add(endpoint)
        ledger.connected(endpoint, now)
    ledger.outbox.clear()
    for endpoint in endpoints:
        ledger.received(endpoint, _welcome(endpoint, 1281, batch), now)
    plan = Plan(np.full(1281, 1000, np.uint32), batch_size=batch, seed=1, rank=0, world_size=ranks)
    # Plan and trailers are not what is measured here: made before the clock runs.
    wanted = [plan.batch(0, step % len(plan)) for step in range(64)]
    packed = [(spans.pack(one), len(one)) for one in wanted]
    prefetch = max(4, _PREFETCH_PER_SERVER * servers)
    spent = 0.0
    pong = codec.seal(Pong(progress=1, queue=2))
    replies: list[tuple[str, list[bytes]]] = []
    for step in range(prefetch + _BATCHES):
        if step == prefetch:
            spent = 0.0
        if step >= prefetch:
            # One batch comes, and the pongs that a trainer at this rate would get meanwhile.
            endpoint, sealed = replies.pop(0)
            started = time.process_time()
            message, _ = codec.unseal(*sealed)
            ledger.wants(endpoint, message)
            ledger.received(endpoint, message, now)
            ledger.tick(now)
            spent += time.process_time() - started
        now += _BATCH_SECONDS
        payload, count = packed[step % len(packed)]
        started = time.process_time()
        get = Get(stream="train", fingerprint="f" * 32, seed=1, epoch=0, batch=step, spans=count)
        ledger.want(get, payload, batch, now)
        ledger.tick(now)
        ledger.wake_at()
        sent = [
            (out.server, out.message, codec.seal(out.message, codec.checksum(out.payload))) for out in ledger.outbox
        ]
        ledger.outbox.clear()
        spent += time.process_time() - started
        for endpoint, message, _ in sent:
            if isinstance(message, Get):
                answer = _batch(batch, message.epoch, message.batch, message.attempt)
                replies.append((endpoint, codec.seal(answer)))
            else:
                started = time.process_time()
                ledger.received(endpoint, codec.unseal(*pong)[0], now)
                spent += time.process_time() - started
    return 1e6 * spent / _BATCHES


def _socket(samples: int, batches: int = 100) -> float:
    """Return GB/s through a pair of sockets in one process, received into memory that is used again."""
    context = zmq.Context()
    sender, receiver = context.socket(zmq.DEALER), context.socket(zmq.DEALER)
    port = receiver.bind_to_random_port("tcp://127.0.0.1")
    sender.connect(f"tcp://127.0.0.1:{port}")
    _, size = offsets(field.rows(samples) for field in _FIELDS)
    block, target = memoryview(bytearray(size)), memoryview(bytearray(size))
    started = time.perf_counter()
    for _ in range(batches):
        sender.send_multipart(list(codec.cut(block)), copy=False)
        _receive(receiver, target)
    elapsed = time.perf_counter() - started
    context.destroy(linger=0)
    return size * batches / elapsed / 1e9


def _receive(socket: "zmq.Socket[bytes]", target: memoryview) -> None:
    received = 0
    while received < len(target):
        received += socket.recv_into(target[received:])


if __name__ == "__main__":
    main()
