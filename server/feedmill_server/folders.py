"""A folder of pictures, served as if it were shards.

The pictures of a tree are dealt to virtual shards in turn, as cards are: each gets its share of every class. Only so
many shards are shuffled together at a time, and windows of one class each would be no shuffling at all.

The rule of this file: what a shard has depends on the tree alone. A picture that is gone or has changed is a bad
sample, and nothing else is.
"""

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from .index import ShardIndex
from .shards import OPEN_SHARDS
from .tar import Member
from .tree import Tree, unique_keys

__all__ = ["FolderShard", "FolderStore"]

SHARD_SAMPLES: Final = 1000
"""Pictures of a virtual shard, at most. A window of 16 then shuffles as many as usual shards would."""


class FolderShard:
    """A virtual shard: pictures and labels, which have places as if in a tar.

    Even places are pictures, odd ones labels: 2i is picture i of the tree, 2l + 1 is label l.
    """

    def __init__(self, index: ShardIndex, tree: Tree) -> None:
        self.index = index
        self._tree = tree

    def read(self, offset: int, size: int) -> bytes:
        """Return a picture or the digits of a label. Raises what `Tree.read` raises."""
        number, is_label = divmod(offset, 2)
        data = b"%d" % number if is_label else self._tree.read(number)
        return data[:size]

    def read_into(self, offset: int, *buffers: memoryview) -> None:
        """Fill the buffers one after the other. Raises what `read` raises."""
        data = memoryview(self.read(offset, sum(buffer.nbytes for buffer in buffers)))
        for buffer in buffers:
            buffer[:] = data[: buffer.nbytes]
            data = data[buffer.nbytes :]


class FolderStore:
    """The virtual shards of ``tree``. Labels are members with the extension cls, as in shards."""

    def __init__(self, tree: Tree, *, open_shards: int = OPEN_SHARDS) -> None:
        self.tree = tree
        self._shards = -(-len(tree) // SHARD_SAMPLES)
        self.names = tuple(f"files-{i:06d}" for i in range(self._shards))
        self.alive: Callable[[], object] = lambda: None
        self._open: dict[int, FolderShard] = {}
        self._open_shards = open_shards

    def __len__(self) -> int:
        return self._shards

    def __repr__(self) -> str:
        return f"<FolderStore: {self.tree!r} in {len(self)} virtual shards>"

    @property
    def sizes(self) -> tuple[int, ...]:
        """The bytes of the pictures in each virtual shard."""
        dealt = np.arange(len(self.tree)) % self._shards
        return tuple(int(size) for size in np.bincount(dealt, self.tree.sizes, self._shards))

    def index(self, i: int) -> ShardIndex:
        """Return what virtual shard ``i`` has. Raises ShardError for a path that is too long for a key."""
        return ShardIndex.build(self._members(range(i, len(self.tree), self._shards)), self.names[i])

    def open(self, i: int) -> FolderShard:
        """Return virtual shard ``i``; the last that were used are kept."""
        shard = self._open.pop(i, None) or FolderShard(self.index(i), self.tree)
        self._open[i] = shard
        if len(self._open) > self._open_shards:
            del self._open[next(iter(self._open))]
        return shard

    def _members(self, pictures: range) -> Iterator[Member]:
        tree = self.tree
        keys = unique_keys(tree.key(i) for i in pictures)
        for i, key in zip(pictures, keys, strict=True):
            label = int(tree.labels[i])
            yield Member(f"{key}.{tree.extension(i)}", 2 * i, int(tree.sizes[i]))
            yield Member(f"{key}.cls", 2 * label + 1, len(str(label)))
