"""Sending replies: a batch leaves from the slot that it was built in, without a copy.

The rule of this file: a slot is pinned until libzmq has let go of every frame of it, however the sending ended.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import zmq

from feedmill_protocol import codec

from .broker import Reply
from .slots import Slot

__all__ = ["Sender"]


class _Sending(NamedTuple):
    reply: Reply[Slot]
    frames: list[zmq.MessageTracker]
    since: float


class Sender:
    """Sends over a ROUTER, and knows what is on its way.

    ``seconds`` is for how long batches were on their way in all: from when libzmq was given one until it was seen to
    have let go of it, since the kernel has it all, or the connection has gone.
    """

    def __init__(self, router: zmq.Socket[bytes], clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = 0.0
        self._router = router
        self._clock = clock
        self._sending: deque[_Sending] = deque()

    def __bool__(self) -> bool:
        """Whether batches are on their way."""
        return bool(self._sending)

    @property
    def since(self) -> float:
        """When the last of the batches that are on their way was sent, 0 if there is none."""
        return self._sending[-1].since if self._sending else 0.0

    def send(self, reply: Reply[Slot]) -> None:
        """Send a reply, which has pinned its slot. Raises zmq.ZMQError if the client has gone or takes no more."""
        trackers: list[zmq.MessageTracker] = []
        try:
            self._send_frames(reply, trackers)
        finally:
            if reply.slot is not None:
                self._sending.append(_Sending(reply, trackers, self._clock()))

    def left(self) -> list[Reply[Slot]]:
        """Return the replies whose slots libzmq needs no more, each once."""
        left = []
        now = self._clock() if self._sending else 0.0
        for _ in range(len(self._sending)):
            sending = self._sending.popleft()
            if all(frame.done for frame in sending.frames):
                left.append(sending.reply)
                self.seconds += now - sending.since
            else:
                self._sending.append(sending)
        return left

    def _send_frames(self, reply: Reply[Slot], trackers: list[zmq.MessageTracker]) -> None:
        send = self._router.send
        frames: list[memoryview] = []
        if reply.slot is not None:
            frames += codec.cut(reply.slot.memory[: reply.message.payload_bytes - len(reply.trailer)])
        frames += codec.cut(memoryview(reply.trailer))
        header, seal = codec.seal(reply.message, reply.checksum)  # before anything is sent: there is no half a message
        send(reply.client, zmq.SNDMORE | zmq.NOBLOCK)
        send(header, zmq.SNDMORE | zmq.NOBLOCK)
        send(seal, zmq.NOBLOCK | (zmq.SNDMORE if frames else 0))
        for frame in frames:
            more = 0 if frame is frames[-1] else zmq.SNDMORE
            tracker = send(frame, zmq.NOBLOCK | more, copy=False, track=True)
            if tracker is not None:
                trackers.append(tracker)
