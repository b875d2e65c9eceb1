"""What the tools look at: batches of feeds and of tensorcom's sockets, in one form.

The rule of this file: what a look costs depends on the URL, and the help says so. A feed is opened for the tool alone,
and takes nothing from a training but the servers' time; ``zsub`` gets a copy of what is published; what ``zpull`` gets,
nobody else does. Names and keys come from the other side, and may be printed: they hold no control characters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self, TypeVar

from feedmill_protocol.errors import UsageError
from feedmill_protocol.printing import printable

from . import zurl
from .feed import Feed, connect

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Sequence

    import torch

__all__ = ["FeedSource", "Seen", "Source", "TensorcomSource", "add_source_arguments", "endless", "open_source"]

_TIMEOUT: Final = 10.0
"""Seconds. A tool is asked by somebody who waits: less than a trainer's minute."""

_OF_FEEDS: Final = {"stream": "streams", "keys": "keys", "seed": "seed", "no_shuffle": "order of their own"}
"""Options that mean nothing to tensorcom's sockets, and what these lack."""

_Batch_co = TypeVar("_Batch_co", covariant=True)


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A batch: its ``tensors``, [N, …] each, their ``names``, the ``keys`` of the samples, and who sent it.

    Streams that do not tell names have numbers instead, and those that do not tell keys have none.
    """

    tensors: tuple[torch.Tensor, ...]
    names: tuple[str, ...]
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
        self._names = tuple(printable(field.name) for field in feed.fields)

    def batches(self) -> Iterator[Seen]:
        """Iterate without end."""
        for batch in endless(self._feed):
            yield Seen(batch.tensors, self._names, [printable(key) for key in batch.keys], batch.server)

    def servers(self) -> dict[str, str]:
        """Return the endpoints of all servers, and the state of each."""
        return {server: printable(state) for server, state in self._feed.servers().items()}

    def counters(self) -> dict[str, int]:
        """Return what the feed has mended."""
        stats = self._feed.stats()
        return {name: getattr(stats, name) for name in ("asked_again", "hedged", "damaged", "skipped")}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._feed.close()


class TensorcomSource:
    """What comes over tensorcom's sockets, which it closes. All URLs are one server: nobody tells who sent a batch."""

    def __init__(self, urls: Sequence[str], timeout: float) -> None:
        for url in zurl.parse(urls):
            if url.sends:
                raise UsageError(f"{url.text} is where batches are sent; to look at them, read from zsub or zrsub")
        import torch  # noqa: PLC0415 # before the connection: what is sent meanwhile would look like a burst

        from .tensorcom import Connection  # noqa: PLC0415 # a feed does without

        self._tensor = torch.from_numpy
        self._connection = Connection(urls, infos=True, timeout=timeout)
        self._name = " ".join(urls)

    def batches(self) -> Iterator[Seen]:
        """Iterate without end."""
        for arrays, infos in self._connection:
            names = tuple(printable(info) or str(number) for number, info in enumerate(infos))
            yield Seen(tuple(map(self._tensor, arrays)), names, [], self._name)

    def servers(self) -> dict[str, str]:
        """Return the one name, of which nothing is known."""
        return {self._name: ""}

    def counters(self) -> dict[str, int]:
        """Return nothing: what is lost on the way, nobody counts."""
        return {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.abort()


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says where batches come from."""
    parser.add_argument(
        "urls",
        nargs="+",
        metavar="URL",
        help="a server, as in tcp://cpu-{0..3}:7880; or a socket of tensorcom's, as in zsub://cpu-0:7880 "
        "(zpull:// takes batches away from other readers)",
    )
    parser.add_argument("--stream", metavar="NAME", help="which stream of feedmill's servers (default: the only one)")
    parser.add_argument("--keys", metavar="DIR", help="folder with our keys, for servers that have keys")
    parser.add_argument(
        "--timeout", type=float, default=_TIMEOUT, metavar="S", help="give up after so long (default: %(default)g)"
    )


def open_source(
    args: argparse.Namespace,
    *,
    finished: bool = False,
    batch_size: int | None = None,
    prefetch: int | None = 1,
) -> Source:
    """Open what `add_source_arguments` has read, and ``--seed`` and ``--no-shuffle`` of the tools that have them.

    The rest is for feeds: ``prefetch`` batches are asked for ahead, and unless they are to be ``finished``, pictures
    stay uint8. Raises what `feedmill.connect` and `feedmill.Connection` raise, and `UsageError` for URLs of both.
    """
    kinds = {zurl.is_zurl(url) for url in args.urls}
    if len(kinds) > 1:
        raise UsageError(f"{' '.join(args.urls)}: feedmill's servers and tensorcom's sockets; look at them one by one")
    if kinds == {True}:
        for option, what in _OF_FEEDS.items():
            if (value := getattr(args, option, None)) is not None:
                said = f"--{option.replace('_', '-')}" + ("" if value is True else f" {value}")
                raise UsageError(f"{said}: tensorcom's sockets have no {what}; leave it out")
        return TensorcomSource(args.urls, args.timeout)
    import torch  # noqa: PLC0415 # takes seconds, and --help does without

    return FeedSource(
        connect(
            args.urls,
            args.stream,
            batch_size=batch_size,
            seed=getattr(args, "seed", None) or 0,
            shuffle=not getattr(args, "no_shuffle", None),
            order="arrival",
            on_error="skip",  # a tool that looks should see what there is
            prefetch=prefetch,
            dtype=torch.float32 if finished else torch.uint8,
            rank=0,
            world_size=1,
            timeout=args.timeout,
            keys=args.keys,
        )
    )
