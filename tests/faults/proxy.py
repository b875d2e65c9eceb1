"""A network that fails: a TCP proxy before a server, which cuts, holds, delays and garbles what passes through it.

Bytes are all it knows. It runs in a thread of its own; what a test calls takes effect before the call returns.
"""

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Self

__all__ = ["FaultProxy", "Way"]

_CHUNK: Final = 64 * 1024
_RST: Final = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: closing sends RST instead of FIN."""

_DEADLINE: Final = 10.0


@dataclass(eq=False)
class Way:
    """One direction. ``delay`` seconds pass before each piece; ``rate`` of all bytes are changed.

    What there is to ``slip_in`` comes before the next piece, once.
    """

    random: random.Random
    delay: float = 0.0
    rate: float = 0.0
    slip_in: bytes = b""
    passed: int = 0
    garbled: int = 0
    flowing: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.flowing.set()

    def take(self, data: bytes) -> bytes:
        """Return what comes out at the other end."""
        self.passed += len(data)
        changed = bytearray(self.slip_in + data)
        self.slip_in = b""
        if not self.rate:
            return bytes(changed)
        position = int(self.random.expovariate(self.rate))
        while position < len(changed):
            changed[position] ^= self.random.randrange(1, 256)
            self.garbled += 1
            position += 1 + int(self.random.expovariate(self.rate))
        return bytes(changed)


class FaultProxy:
    """Listens at ``url`` and passes everything on to ``target``. Use it as a context manager.

    ``up`` leads from the client to the server, ``down`` back. ``seed`` decides which bytes are changed.
    """

    def __init__(self, target: str, seed: int = 0) -> None:
        self.up = Way(random.Random(f"{seed} up"))
        self.down = Way(random.Random(f"{seed} down"))
        self.accepted = 0
        self._host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._port = int(port)
        self._open = True
        self._writers: set[asyncio.StreamWriter] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="fault proxy")

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(_DEADLINE)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(_DEADLINE)
        assert not self._thread.is_alive()

    def cut(self) -> None:
        """Close all connections in good form (FIN)."""
        self._do(self._cut)

    def reset(self) -> None:
        """Break all connections off (RST)."""
        self._do(lambda: self._cut(linger=_RST))

    def part(self) -> None:
        """Let nobody through any more: connections break, and new ones break at once."""
        self._open = False
        self.reset()

    def join(self) -> None:
        """Let everybody through again."""
        self._open = True

    def stall(self, *ways: Way) -> None:
        """Hold what comes these ways, and keep the connections."""
        for way in ways:
            self._do(way.flowing.clear)

    def flow(self) -> None:
        """Let go of what is held."""
        for way in (self.up, self.down):
            self._do(way.flowing.set)

    def _do(self, action: Callable[[], object]) -> None:
        async def act() -> None:
            action()

        asyncio.run_coroutine_threadsafe(act(), self._loop).result(_DEADLINE)

    def _cut(self, linger: bytes = b"") -> None:
        for writer in self._writers:
            if linger:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()

        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._serve(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(accepted, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        self.url = f"tcp://127.0.0.1:{port}"
        self._ready.set()
        await self._closing.wait()
        server.close()
        self._cut()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await self._held(writer, self._meet(reader, writer))

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open:
            writer.transport.abort()
            return
        self.accepted += 1
        far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._held(far_writer, self._pump(self.up, reader, far_writer)))
            both.create_task(self._pump(self.down, far_reader, writer))

    async def _held(self, writer: asyncio.StreamWriter, work: Coroutine[Any, Any, None]) -> None:
        """Do some work while a connection can be cut; close it afterwards."""
        self._writers.add(writer)
        try:
            await work
        finally:
            self._writers.discard(writer)
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()

    async def _pump(self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                await way.flowing.wait()
                if way.delay:
                    await asyncio.sleep(way.delay)
                writer.write(way.take(data))
                await writer.drain()
        writer.transport.abort()
