"""What the rest of a server needs of its data, whether that lies in shards or in a folder of pictures."""

from collections.abc import Callable, Sequence
from typing import Protocol

from .index import ShardIndex

__all__ = ["Opened", "Store"]


class Opened(Protocol):
    """A shard that is open: the places that its ``index`` names can be read."""

    index: ShardIndex

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes of a member. Raises ShardError where the whole shard is bad."""

    def read_into(self, offset: int, *buffers: memoryview) -> None:
        """Fill the buffers one after the other with what begins at ``offset``. Raises what `read` raises."""


class Store(Protocol):
    """The shards of a stream, by number."""

    names: tuple[str, ...]
    alive: Callable[[], object]
    """Called again and again during what may take minutes."""

    def __len__(self) -> int: ...

    @property
    def sizes(self) -> Sequence[int]:
        """The bytes of every shard, once all were indexed."""

    def index(self, i: int) -> ShardIndex:
        """Return what shard ``i`` has. May be called from several threads. Raises ShardError."""

    def open(self, i: int) -> Opened:
        """Return shard ``i``, open; the store closes it. Raises ShardError."""
