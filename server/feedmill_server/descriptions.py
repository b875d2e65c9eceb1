"""What the broker and the fork server tell each other of pipelines and of shards.

They travel as lists: what comes out of a channel is made one of these again, with `PipelineFacts(*fields)`.
"""

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["PipelineFacts", "StoreFacts"]


class PipelineFacts(NamedTuple):
    """A pipeline as it was loaded: its fields with the extensions of each, and a digest of its ``source``.

    Fields that stages may make, so that shards need not have them, are left out. ``fusion`` says what was recognised of
    its transforms.
    """

    fields: Sequence[tuple[str, Sequence[str]]]
    batch_size: int
    source: str
    fusion: Sequence[str]


class StoreFacts(NamedTuple):
    """The shards of a stream: their paths as bytes, the states in which they were indexed, and how to open them.

    Where there is a ``tree`` (a packed `feedmill_server.tree.Tree`), its pictures are the data, and ``paths`` is empty.
    """

    paths: Sequence[bytes]
    stamps: Sequence[tuple[int, int] | None]
    cache: str
    inflated_bytes: int
    open_shards: int
    tree: bytes = b""
