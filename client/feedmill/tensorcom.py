"""Streams of arrays on tensorcom's sockets, for its users and beside them.

What goes over these sockets is sent whether or not anybody asked for it. So it can be lost without a word: PUSH loses
what is under way to a reader that dies, PUB drops what a slow reader has no room for. A feed (`feedmill.connect`) loses
nothing; these are for what speaks tensorcom already. The rule of this file: nothing that came is believed before
`tenbin` has checked it.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

from feedmill_protocol import limits, tenbin
from feedmill_protocol.arguments import integer, seconds
from feedmill_protocol.errors import ProtocolError, UsageError

from . import zurl
from .rates import Rates
from .tenbin import as_array
from .zsocket import HWM, ZSocket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import torch

    from .converters import Converter

__all__ = ["Connection", "publish"]

_log = logging.getLogger(__name__)

_HWM_MAX: Final = 1_000_000

_WIDE: Final = frozenset({"f8", "i8", "u8"})


class Connection:
    """A stream of arrays on tensorcom's sockets; to iterate over, or to send to.

    ``url`` is one or several of one kind, like ``"zsub://cpu-{0..3}:7880"``: what comes from any of them comes in turn,
    what is sent goes to one after the other (zpush) or to all (zpub). A batch is a list of NumPy arrays.

    Reading: ``batch_transforms`` and then ``converters`` are functions, or one for each array in turn, None for none;
    "torch", "torch_cuda" and "numpy" name converters. ``device`` makes tensors on it of what they leave. ``total`` ends
    an iteration after so many samples: rows of the first array, or messages if ``batch_count`` is False. ``epoch`` is
    what ``len`` says and means nothing else. ``raw`` hands out the frames as they came, as bytes. ``infos`` are short
    texts, one for each array: those to send; read, those that must come, or True for a pair of arrays and infos.

    Sending: ``allow64`` lets 64-bit numbers through, ``multipart=False`` makes a batch one frame; reading takes both.
    Both ends hold at most ``hwm`` batches that wait. ``report`` writes rates to the log, every so many samples.

    Waits raise ServerUnavailable after ``timeout`` seconds; None waits for ever, as a server does for its first reader.
    What came and is no batch raises ProtocolError; the next one may be read. For one thread. Raises UsageError.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        epoch: int = 100_000,
        total: int | None = None,
        multipart: bool = True,
        infos: bool | Sequence[str] | None = None,
        device: str | torch.device | None = None,
        allow64: bool = False,
        raw: bool = False,
        batch_transforms: str | Converter | Sequence[str | Converter | None] | None = None,
        batch_count: bool = True,
        converters: str | Converter | Sequence[str | Converter | None] | None = None,
        report: int | None = None,
        noexpand: bool = False,
        hwm: int = HWM,
        timeout: float | None = 60.0,
    ) -> None:
        self._urls = zurl.parse(url, expand=not noexpand)
        self._sends = self._urls[0].sends
        self._epoch = integer("epoch", epoch, 0, limits.INT63)
        self._total = _or_none("total", total)
        self._report = _or_none("report", report)
        timeout = None if timeout is None else seconds("timeout", timeout)
        if infos is True and self._sends:
            raise UsageError("infos=True: expected the texts to send, one for each array")
        self._infos = infos or None
        self._multipart = multipart
        self._allow64 = allow64
        self._raw = raw
        self._batch_count = batch_count
        self._steps = _steps(batch_transforms, converters, device)
        self.rates = Rates()
        self._socket = ZSocket(self._urls, hwm=integer("hwm", hwm, 1, _HWM_MAX), timeout=timeout)

    @property
    def endpoints(self) -> list[str]:
        """Where it is bound or connected, in libzmq's words; with the port where a URL left it open by ``*``."""
        return self._socket.endpoints

    def __repr__(self) -> str:
        return f"<Connection {', '.join(url.text for url in self._urls)}: {self.rates.summary()}>"

    def __len__(self) -> int:
        """Return ``epoch``, for what wants to know how long a loader is."""
        return self._epoch

    def __iter__(self) -> Iterator[Any]:
        """Iterate over what comes."""
        return self.items()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def items(self, report: int | None = None) -> Iterator[Any]:
        """Iterate over what comes: to ``total`` samples, or without end. ``report`` goes before the connection's."""
        count = 0
        while self._total is None or count < self._total:
            batch, samples = self._next()
            count += self._done(samples, report)
            yield batch

    def recv(self) -> Any:
        """Return the next batch: a list of arrays or of what converters made of them, or whatever `raw`, `infos` say.

        Raises ServerUnavailable if none comes in time, ProtocolError for what is none, UsageError.
        """
        batch, _ = self._next()
        return batch

    def _next(self) -> tuple[Any, int]:
        if self._sends:
            raise UsageError(f"{self._urls[0].text} sends; to receive, read from one of zpull, zsub, zrpull, zrsub")
        frames = self._socket.receive()
        nbytes = sum(map(len, frames))
        if self._raw:
            self.rates.add(1, nbytes)
            return [bytes(frame) for frame in frames], 1
        arrays, infos = tenbin.loads(frames[0]) if len(frames) == 1 else tenbin.decode(frames)
        if self._infos not in (None, True) and list(self._infos) != infos:  # type: ignore[arg-type]
            raise ProtocolError(f"{self._urls[0].text}: expected infos {list(self._infos)}, got {infos}")  # type: ignore[arg-type]
        samples = self._samples(arrays)
        self.rates.add(samples, nbytes)
        values: list[Any] = list(arrays)
        for step in self._steps:
            values = step(values)
        return ((values, infos) if self._infos is True else values), samples

    def send(self, data: Sequence[Any], *, allow64: bool = False) -> None:
        """Send a batch: a list or tuple of arrays or tensors. Waits for a reader, and for room.

        Raises ServerUnavailable if there is none in time, UsageError for what cannot be sent.
        """
        if not self._sends:
            raise UsageError(f"{self._urls[0].text} receives; to send, give one of zpush, zpub, zrpush, zrpub")
        if not isinstance(data, (list, tuple)):
            raise UsageError(f"a batch is a list or tuple of arrays or tensors, not {type(data).__name__}")
        if not data:
            raise UsageError("a batch has one array or tensor at least, and this one has none")
        arrays = [as_array(value) for value in data]
        for array in arrays:
            if f"{array.dtype.kind}{array.dtype.itemsize}" in _WIDE and not (allow64 or self._allow64):
                raise UsageError(f"an array of {array.dtype}: send 32-bit numbers, or give allow64=True")
        infos = None if self._infos is True else self._infos
        frames = tenbin.encode(arrays, infos) if self._multipart else [tenbin.dumps(arrays, infos)]
        self._socket.send(frames)
        self.rates.add(self._samples(arrays), sum(map(len, frames)))

    write = send

    def serve(self, source: Iterable[Sequence[Any]], report: int | None = None) -> int:
        """Send every batch of an iterable; return how many these were. ``report`` goes before the connection's."""
        if not any(hasattr(source, method) for method in ("__iter__", "__getitem__")):
            raise UsageError(f"{source!r} is no iterable; give batches to send: lists or tuples of arrays or tensors")
        sent = 0
        for batch in source:
            before = self.rates.samples
            self.send(batch)
            self._done(self.rates.samples - before, report)
            sent += 1
        return sent

    def close(self) -> None:
        """Close, after at most ``timeout`` seconds in which readers take what was sent. May be called twice."""
        self._socket.close()

    def abort(self) -> None:
        """Close at once, whatever has not been taken. May be called twice."""
        self._socket.abort()

    def _samples(self, arrays: Sequence[tenbin.Array]) -> int:
        return len(arrays[0]) if self._batch_count and arrays and arrays[0].ndim else 1

    def _done(self, samples: int, report: int | None) -> int:
        """Report if a multiple of so many samples was passed."""
        every = _or_none("report", report) or self._report
        if every and self.rates.samples // every != (self.rates.samples - samples) // every:
            _log.info("%s: %s", self._urls[0].text, self.rates.summary())
        return samples


def publish(
    iterable: Iterable[Sequence[Any]],
    url: str | Sequence[str],
    *,
    infos: Sequence[str] | None = None,
    multipart: bool = True,
    hwm: int = HWM,
    report: int | None = None,
    timeout: float | None = None,
) -> int:
    """Send what an iterable yields, tuples of tensors or arrays, on tensorcom's sockets; return how many were sent.

    Waits for readers: as long as it takes, like any server, or ``timeout`` seconds, and then raises ServerUnavailable.
    Readers come and go; what is under way to one that dies is lost. Ctrl-C ends it. The arguments are `Connection`'s.
    """
    connection = Connection(
        url, infos=infos, multipart=multipart, hwm=hwm, report=report, timeout=timeout, allow64=True
    )
    with suppress(KeyboardInterrupt), connection:
        connection.serve(iterable)
    return connection.rates.messages


def _or_none(name: str, value: int | None) -> int | None:
    """Read a number for which None, and -1 as in tensorcom, means none."""
    return None if value is None or value == -1 else integer(name, value, 1, limits.INT63)


def _steps(
    transforms: str | Converter | Sequence[str | Converter | None] | None,
    converters: str | Converter | Sequence[str | Converter | None] | None,
    device: str | torch.device | None,
) -> list[Callable[[list[Any]], list[Any]]]:
    """Return what is done to the values of a batch. torch, which takes seconds, is imported only where it is needed."""
    if transforms is None and converters is None and device is None:
        return []
    from .converters import apply, choose  # noqa: PLC0415

    steps = [choose("batch_transforms", transforms), choose("converters", converters)]
    if device is not None:
        from .tensors import device_of  # noqa: PLC0415

        on = device_of(device)

        def put(value: Any) -> Any:
            import torch  # noqa: PLC0415

            return torch.as_tensor(value, device=on)

        steps.append((put,))
    return [partial(apply, functions) for functions in steps if functions]
