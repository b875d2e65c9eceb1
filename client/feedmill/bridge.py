"""``feedmill bridge``: a feed, sent on over tensorcom's sockets, so that tensorcom's own clients train from feedmill.

The bridge is an ordinary client of the servers: it asks for what it sends on, every sample of an epoch once, whatever
server dies. Behind it tensorcom's rules hold: zpush deals batches out, and those under way to a reader that dies are
lost; zpub sends all to all, and drops what a slow reader has no room for.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from feedmill_protocol.errors import UsageError

from . import zurl
from .feed import connect
from .tensorcom import Connection

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator

    import torch

    from feedmill_protocol.tenbin import Array

__all__ = ["add_arguments", "bridge", "portable", "run"]

_log = logging.getLogger(__name__)

_REPORT_SECONDS: Final = 10.0

_WIDER: Final = {"bool": "uint8", "uint32": "int64", "bfloat16": "float32"}
"""What tensorcom 0.1.0 cannot read, and what holds the same numbers."""

_UNKNOWN: Final = frozenset({"complex64", "complex128"})

_CHANNELS: Final = (3, 4)
"""Channels of pictures, as tensorcom's converters count them."""


class _Feed(Protocol):
    """As much of a `Feed` as is sent on."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]: ...


def bridge(
    feed: _Feed,
    connection: Connection,
    *,
    epochs: int | None = None,
    nhwc: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Send the batches of so many epochs (None: without end) to a connection's readers; return how many these were.

    Arrays are those of `portable`. Raises UsageError for an epoch without batches; errors of the feed pass through.
    """
    if not len(feed):
        raise UsageError("an epoch of this stream holds no batch; ask for a smaller batch_size, or last='keep'")
    reported, epoch, sent = clock(), 0, 0
    while epochs is None or epoch < epochs:
        for tensors in feed:
            connection.send(portable(tensors, nhwc=nhwc))
            sent += 1
            if clock() - reported >= _REPORT_SECONDS:
                reported = clock()
                _log.info("epoch %d: sent %s", epoch, connection.rates.summary())
        epoch += 1
    return sent


def portable(tensors: Iterable[torch.Tensor], *, nhwc: bool = True) -> list[Array]:
    """Return tensors as arrays that tensorcom 0.1.0 can read.

    Dtypes that it does not know become wider ones with the same values. ``nhwc`` puts the channels of pictures
    [N, C, H, W] last, as tensorcom's servers do and its "torch" converter expects. Raises UsageError for complex ones.
    """
    return [_portable(tensor, nhwc=nhwc) for tensor in tensors]


def _portable(tensor: torch.Tensor, *, nhwc: bool) -> Array:
    import torch  # noqa: PLC0415 # takes seconds; the command line does without

    name = str(tensor.dtype).removeprefix("torch.")
    if name in _UNKNOWN:
        raise UsageError(
            f"tensorcom's clients know no {name}; have the pipeline split it into real and imaginary parts"
        )
    if name in _WIDER:
        tensor = tensor.to(getattr(torch, _WIDER[name]))
    if nhwc and tensor.ndim == 4 and tensor.shape[1] in _CHANNELS:
        tensor = tensor.permute(0, 2, 3, 1)
    return np.asarray(tensor.numpy(force=True), order="C")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``feedmill bridge``."""
    parser.add_argument("feed", metavar="FEED_URL", help="servers, as in tcp://cpu-{0..3}:7880")
    parser.add_argument(
        "urls",
        nargs="+",
        metavar="ZURL",
        help="where to send: zpub, zpush, zrpub or zrpush, as in zpub://127.0.0.1:7881",
    )
    parser.add_argument("--stream", metavar="NAME", help="which stream of the servers (default: the only one)")
    parser.add_argument("--epochs", type=int, metavar="N", help="end after so many (default: never)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="samples in a batch (default: the stream's)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of order and augmentation (default: 0)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "uint8"),
        default="float32",
        help="of pictures; uint8 leaves out to-float and normalise, a quarter of the bytes (default: %(default)s)",
    )
    parser.add_argument(
        "--layout",
        choices=("nhwc", "nchw"),
        default="nhwc",
        help="of pictures; tensorcom's converters expect nhwc (default: %(default)s)",
    )
    parser.add_argument("--single", action="store_true", help="one frame a batch, for clients that say multipart=False")
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="seconds without progress of any server, and the end"
    )
    parser.add_argument(
        "--hwm", type=int, default=16, metavar="N", help="batches that may wait for a reader (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Send on until the end, or Ctrl-C."""
    import torch  # noqa: PLC0415

    if args.epochs is not None and args.epochs < 1:
        raise UsageError(f"--epochs={args.epochs}: expected 1 or more")
    if not zurl.parse(args.urls)[0].sends:
        raise UsageError(f"{args.urls[0]} receives; a bridge sends: give zpub, zpush, zrpub or zrpush")
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    dtype = getattr(torch, args.dtype)
    with (
        Connection(args.urls, allow64=True, multipart=not args.single, hwm=args.hwm, timeout=None) as connection,
        connect(
            args.feed, args.stream, seed=args.seed, batch_size=args.batch_size, dtype=dtype, timeout=args.timeout
        ) as feed,
    ):
        _log.info("%r goes to %s; waits for readers", feed, ", ".join(connection.endpoints))
        sent = bridge(feed, connection, epochs=args.epochs, nhwc=args.layout == "nhwc")
    _log.info("sent %d batches; done", sent)
    return 0
