"""What the tools look at: batches of feeds in the one form that monitor, show and stat need.

The rule of this file: looking takes nothing from a training but the servers' time. A tool has a feed of its own, which
gets batches made for it alone, asks for few ahead, and leaves as soon as it has seen enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self, TypeVar

from feedmill_protocol.errors import UsageError

from .feed import Feed, connect

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Sequence

    import torch

__all__ = ["FeedSource", "Seen", "Source", "add_source_arguments", "endless", "open_source"]

_TIMEOUT: Final = 10.0
"""Seconds. A tool is asked by somebody who waits: less than a trainer's minute."""

_Batch_co = TypeVar("_Batch_co", covariant=True)


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A batch: its ``tensors``, [N, …] each, the ``keys`` of its samples if the stream tells, and who sent it."""

    tensors: tuple[torch.Tensor, ...]
    keys: Sequence[str]
    server: str

    @property
    def samples(self) -> int:
        """Rows of the first tensor."""
        first = self.tensors[0] if self.tensors else None
        return len(first) if first is not None and first.ndim else 0

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


class Source(Protocol):
    """An endless sequence of batches; a context manager."""

    names: tuple[str, ...]
    """Of the fields; empty where the stream does not tell."""

    def batches(self) -> Iterator[Seen]:
        """Iterate without end. Raises what the stream raises."""

    def servers(self) -> dict[str, str]:
        """Return who may send, and what is known of each."""

    def counters(self) -> dict[str, int]:
        """Return what has gone wrong so far, and been mended: repeated requests, skipped samples, ….

        Empty where the stream does not tell.
        """

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


class _Epochs(Protocol[_Batch_co]):
    def batches(self) -> Iterable[_Batch_co]: ...


def endless(feed: _Epochs[_Batch_co]) -> Iterator[_Batch_co]:
    """Iterate over the batches of a feed, epoch after epoch. Raises `UsageError` for an epoch without batches."""
    while True:
        batch = None
        for batch in feed.batches():
            yield batch
        if batch is None:
            raise UsageError("an epoch of this stream holds no batch; ask for a smaller batch_size, or last='keep'")


class FeedSource:
    """The batches of a feed, which it closes."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self.names = tuple(field.name for field in feed.fields)

    def batches(self) -> Iterator[Seen]:
        """Iterate without end."""
        return (Seen(batch.tensors, batch.keys, batch.server) for batch in endless(self._feed))

    def servers(self) -> dict[str, str]:
        """Return the endpoints of all servers, and the state of each."""
        return self._feed.servers()

    def counters(self) -> dict[str, int]:
        """Return what the feed has mended."""
        stats = self._feed.stats()
        return {name: getattr(stats, name) for name in ("asked_again", "hedged", "damaged", "skipped")}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._feed.close()


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says where batches come from."""
    parser.add_argument("urls", nargs="+", metavar="URL", help="a server, as in tcp://cpu-{0..3}:7880")
    parser.add_argument("--stream", metavar="NAME", help="which stream of the servers (default: the only one)")
    parser.add_argument(
        "--timeout", type=float, default=_TIMEOUT, metavar="S", help="give up after so long (default: %(default)g)"
    )


def open_source(
    args: argparse.Namespace,
    *,
    finished: bool = False,
    batch_size: int | None = None,
    prefetch: int | None = 1,
    seed: int = 0,
    shuffle: bool = True,
) -> Source:
    """Open what `add_source_arguments` has read.

    Servers are asked for ``prefetch`` batches ahead. Unless they are to be ``finished``, pictures stay uint8. Raises
    what `feedmill.connect` raises.
    """
    import torch  # noqa: PLC0415 # takes seconds, and --help does without

    return FeedSource(
        connect(
            args.urls,
            args.stream,
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            order="arrival",
            on_error="skip",  # a tool that looks should see what there is
            prefetch=prefetch,
            dtype=torch.float32 if finished else torch.uint8,
            rank=0,
            world_size=1,
            timeout=args.timeout,
        )
    )
