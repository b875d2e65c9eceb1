"""What the broker works with: streams, the memory that batches are built in, builds, their parts, and replies.

Values and records; what becomes of them is decided in `feedmill_server.broker`.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from feedmill_protocol.messages import Get, Message
from feedmill_protocol.spans import Spans
from feedmill_protocol.tensors import FieldSpec, offsets

__all__ = ["Asker", "Bad", "Build", "BuildName", "M", "Memory", "Pool", "Reply", "Stream", "Work"]


class Memory(Protocol):
    """What the broker needs of a slot. It is pinned once for each `Reply`, until whoever sends that has sent it."""

    pins: int

    def compact(self, fields: Sequence[FieldSpec], samples: int, missing: Sequence[int]) -> None:
        """Close the gaps that missing rows leave."""

    def checksum(self, nbytes: int, trailer: bytes) -> int:
        """Return `codec.checksum` of the first nbytes and a trailer."""


M = TypeVar("M", bound=Memory)


class Pool(Protocol[M]):
    """Where slots come from: `max_bytes` of memory."""

    max_bytes: int

    def take(self, nbytes: int) -> M | None:
        """Return memory for a block of nbytes, or None while there is none."""

    def give(self, slot: M) -> None:
        """Take back memory that take returned."""


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """A stream, as far as the broker is concerned. ``number`` is its place among the server's streams."""

    number: int
    name: str
    fields: tuple[FieldSpec, ...]
    batch_size: int
    shards: tuple[str, ...]
    counts: npt.NDArray[np.uint32]
    catalog: str
    fingerprint: str


class Bad(NamedTuple):
    """A sample that cannot be had. A key of "" blames the whole shard; ``fatal`` says that its worker died of it."""

    row: int
    shard: int
    key: str
    reason: str
    fatal: bool = False

    @property
    def kind(self) -> str:
        """Why it is bad, as the tally counts it."""
        return "worker" if self.fatal else "sample" if self.key else "shard"


BuildName: TypeAlias = tuple[str, int, int, str, bytes]
Asker: TypeAlias = tuple[bytes, int, int]  # client, epoch, batch


@dataclass(slots=True, eq=False)
class Build(Generic[M]):
    """A batch on its way: queued (no slot), being built (parts left or running), or done."""

    name: BuildName
    stream: Stream
    get: Get
    spans: Spans
    rows: int  # samples of the batch, whether or not they can be had
    samples: npt.NDArray[np.int64] = field(init=False)  # (shard, index) of each row, once there is a slot
    waiters: dict[Asker, int] = field(default_factory=dict)  # who asked, and in which attempt
    slot: M | None = None
    parts: "deque[Work[M]]" = field(default_factory=deque)
    running: int = 0
    keys: list[str] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    checksum: int | None = None  # of the payload, once it was sent
    done: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the block."""
        return offsets(f.rows(self.rows) for f in self.stream.fields)[1]


@dataclass(slots=True, eq=False)
class Work(Generic[M]):
    """A part of a build for one worker: ``rows`` samples from row ``first`` on; one alone has cost ``kills``."""

    build: Build[M]
    first: int
    rows: int
    kills: float = 0

    @property
    def samples(self) -> npt.NDArray[np.int64]:
        """Shard and index of each sample: int64 [rows, 2]."""
        return self.build.samples[self.first : self.first + self.rows]


class Reply(NamedTuple, Generic[M]):
    """A message for a client. The payload, of this checksum, is that of the build's slot and the bytes behind it."""

    client: bytes
    message: Message
    slot: M | None
    trailer: bytes
    checksum: int
