"""A feed as a dataset for torch's DataLoader, whose worker processes share the batches of the rank.

A feed needs no DataLoader: it works in the background by itself. This is for code that insists on one, and for work on
batches that should be done in other processes. Importing this module imports torch.
"""

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, NoReturn, Unpack

import torch
from torch.utils.data import IterableDataset, get_worker_info
from torch.utils.data._utils.collate import default_collate_fn_map

from feedmill_protocol import limits
from feedmill_protocol.arguments import integer
from feedmill_protocol.errors import UsageError

from . import ranks
from .feed import Feed, Options, connect
from .state import VERSION

__all__ = ["FeedDataset", "Options"]

_WORKERS: Final = 1024
"""Worker processes of a DataLoader at most: room for a number of each, 8 KiB of shared memory."""

_MARK: Final = 2**32


class _Tensors(tuple[torch.Tensor, ...]):
    """The tensors of a batch, which nobody may collate once more."""

    __slots__ = ()


def _beginning(epoch: int) -> dict[str, Any]:
    """Return the state of an epoch of which nothing has been handed out, of whatever stream."""
    return {"version": VERSION, "epoch": epoch}


def _refuse(*_: object, **__: object) -> NoReturn:
    raise UsageError("a FeedDataset hands out whole batches: give batch_size=None to DataLoader")


default_collate_fn_map[_Tensors] = _refuse


class FeedDataset(IterableDataset[tuple[torch.Tensor, ...]]):
    """The batches of a rank, for ``DataLoader(dataset, batch_size=None, num_workers=…)``.

    The arguments are those of `connect`. It connects where it is iterated over: in each of the loader's workers (which
    asks for ``prefetch`` batches ahead on its own), or in this process if there are none. Workers take the batches of
    the rank in turn, so the loader hands them out in the order of the plan. Tensors come on the CPU. Ranks are those of
    the process that made the loader; only without workers do they compare their arguments, as in `connect`.

    Each iteration is the next epoch, as with a `Feed`, in persistent workers or new ones. It can be pickled, for
    workers that are spawned, and works in torchdata's StatefulDataLoader. Errors come out of a worker as DataLoader
    brings them: of the same class, but with their text alone.
    """

    def __init__(self, url: str | Sequence[str], stream: str | None = None, **options: Unpack[Options]) -> None:
        inspect.signature(connect).bind(url, stream, **options)  # a TypeError here, not in a worker
        self._url = url
        self._stream = stream
        self._options = options
        self._feed: Feed | None = None
        self._owner = 0  # the process that opened it
        self._under_way = False  # whether that feed knows best where we are; until then:
        self._next: dict[str, Any] = _beginning(0)
        self._length: int | None = None
        # The epoch that was set, and how many iterations each worker has begun since, and of which loader; at the end
        # that of a process without workers. The process that sets epochs and those that iterate are not the same.
        self._shared = torch.zeros(1 + _WORKERS + 1, dtype=torch.int64).share_memory_()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {
            "_feed": None,
            "_owner": 0,
            "_under_way": False,
            "_next": self._feed.state_dict() if self._feed and self._is_ours() and self._under_way else self._next,
            "_options": self._options_of_rank(),
        }

    def __len__(self) -> int:
        """Return the number of batches of an epoch on this rank. Asks a server, the first time."""
        if self._length is None:
            with connect(self._url, self._stream, **self._options_of_rank()) as feed:
                self._length = len(feed)
        return self._length

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """Iterate over the tensors of the next epoch's batches, or in a worker over its share of them."""
        # Nothing here waits: DataLoader's worker does not notice yet when its trainer is killed.
        turn = self._begin()
        if turn or self._under_way:
            self._next = _beginning(int(self._shared[0]) + turn)
        self._under_way = False
        return self._iterate()

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of an epoch, in this process and in all workers.

        If a state of that very epoch was loaded, it still goes on from there.
        """
        epoch = integer("epoch", epoch, 0, limits.INT63)
        if self._under_way or self._shared[1:].any() or self._next["epoch"] != epoch:
            self._next = _beginning(epoch)
        self._under_way = False
        self._shared[1:] = 0
        self._shared[0] = epoch

    def state_dict(self) -> dict[str, Any]:
        """Return where the iteration in this process is: behind the last batch that it has handed out.

        As `Feed.state_dict`, but an iteration that has ended stays at the end of its epoch: StatefulDataLoader begins
        the next one itself. Before the first batch it is the epoch alone. With workers, take the state of that loader;
        this raises UsageError.
        """
        if self._feed is not None and self._is_ours() and self._under_way:
            return self._feed.state_dict()
        if get_worker_info() is None and self._shared[1:-1].any():
            raise UsageError(
                "only DataLoader's workers know where they are; use torchdata's StatefulDataLoader, and its state"
            )
        return dict(self._next)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Have the next iteration go on where a state was taken. Raises UsageError for one that is none.

        Whether it is of this stream is seen when servers are asked.
        """
        if not isinstance(state_dict, Mapping) or "epoch" not in state_dict:
            raise UsageError(f"state={state_dict!r}: expected what state_dict() returned")
        self.set_epoch(state_dict["epoch"])
        self._next = dict(state_dict)

    def close(self) -> None:
        """Leave the servers, as far as this process is concerned. May be called twice; iterating connects again."""
        if self._feed is not None and self._is_ours():
            self._next = self._feed.state_dict() if self._under_way else self._next
            self._feed.close()
        self._feed, self._under_way = None, False

    def _iterate(self) -> Iterator[tuple[torch.Tensor, ...]]:
        feed = self._open()
        if self._next != _beginning(self._next["epoch"]):
            feed.load_state_dict(self._next)
        feed.set_epoch(self._next["epoch"])
        self._under_way = True
        # Never asked for more than there is, the feed stays at the end of its epoch.
        for batch in islice(feed.batches(), feed.remaining):
            yield _Tensors(batch.tensors)

    def _open(self) -> Feed:
        """Return the feed of this process."""
        if self._feed is not None and self._is_ours():
            return self._feed
        if (worker := get_worker_info()) is None:
            feed = connect(self._url, self._stream, **self._options)
        else:
            if torch.device(self._options.get("device", "cpu")).type != "cpu":
                raise UsageError(f"device={self._options['device']!r}: DataLoader's workers have tensors on the CPU")
            feed = connect(self._url, self._stream, **self._options_of_rank())
            feed.split(worker.id, worker.num_workers)
        self._feed, self._owner = feed, os.getpid()
        return feed

    def _is_ours(self) -> bool:
        """Tell whether the feed is this process's own, and not inherited by a fork."""
        return self._owner == os.getpid()

    def _options_of_rank(self) -> Options:
        """Return the options with rank and world size, which a worker may not know, and which ask no other rank."""
        if (self._options.get("rank"), self._options.get("world_size")) != (None, None):
            return self._options
        rank, world_size = ranks.world() or (0, 1)
        return {**self._options, "rank": rank, "world_size": world_size}

    def _begin(self) -> int:
        """Return how many iterations have begun since the epoch was set, and count this one.

        Every worker comes to the same number, even after an iteration that was left before they all had begun: whoever
        has begun another one is one behind, whoever has begun this one (the loader's seed says so) shows its number.
        """
        worker = get_worker_info()
        if worker and worker.num_workers > _WORKERS:
            raise UsageError(f"num_workers={worker.num_workers}: expected at most {_WORKERS}")
        number, seed = (worker.id, worker.seed - worker.id) if worker else (_WORKERS, 0)
        mark = seed % _MARK
        seen = self._shared[1:].clone()
        begun = seen // _MARK
        others = torch.where((begun == 0) | (seen % _MARK == mark), begun, begun + 1)
        turn = max(int(begun[number]) + 1, int(others.max()))
        self._shared[1 + number] = turn * _MARK + mark  # one store: nobody sees the number without the mark
        return turn - 1
