"""Bare pyzmq: a PUSH socket sends frames as feedmill's server cuts them, a PULL socket takes them. No protocol."""

import multiprocessing
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import zmq

from benchmarks import contest
from feedmill_protocol import codec

_BUFFERS: Final = 80
"""Batches in memory, sent in turns: as many as `cached` has, so that the processor's cache helps neither."""

_QUEUE: Final = 40
"""Frames queued on each side: four batches."""


def _push(address: str, given: contest.Entry) -> None:
    socket = zmq.Context().socket(zmq.PUSH)
    socket.set(zmq.SNDHWM, _QUEUE)
    socket.connect(address)
    size = given.batch * 3 * contest.SIDE**2
    buffers = [memoryview(np.full(size, n, np.uint8)) for n in range(_BUFFERS)]  # type: ignore[arg-type]
    while True:
        for buffer in buffers:
            socket.send(b"header", zmq.SNDMORE)
            socket.send_multipart(list(codec.cut(buffer)), copy=False)


def main() -> None:
    """Run it."""
    given = contest.entry(times=20)  # as `cached`
    socket = zmq.Context().socket(zmq.PULL)
    socket.set(zmq.RCVHWM, _QUEUE)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    spawn = multiprocessing.get_context("spawn")
    sender = spawn.Process(target=_push, args=(f"tcp://127.0.0.1:{port}", given), daemon=True)
    sender.start()
    contest.measure(_batches(socket, given), given, warm_up=_BUFFERS)
    sender.kill()
    sender.join()


def _batches(socket: Any, given: contest.Entry) -> Iterator[tuple[Any, Any]]:
    """Yield what stands for a batch: its last frame is looked at, and none is copied."""
    labels = np.zeros(given.batch, np.int64)
    while True:
        _, *frames = socket.recv_multipart(copy=False)
        value = np.frombuffer(frames[-1].buffer, np.uint8)[-1]
        yield np.broadcast_to(value, (given.batch, 3, contest.SIDE, contest.SIDE)), labels


if __name__ == "__main__":
    main()
