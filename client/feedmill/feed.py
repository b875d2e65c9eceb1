"""The feed: what a trainer iterates over.

A feed asks for the batches that its plan names, a few ahead, and hands them out in the order of the plan or as they
come. It goes on from epoch to epoch: while the last batches of one are consumed, the first of the next are asked for.
"""

import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import eq
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypedDict

from feedmill_protocol import limits, spans
from feedmill_protocol.arguments import integer, seconds
from feedmill_protocol.errors import StreamMismatch, UsageError
from feedmill_protocol.messages import Get, Skipped, Welcome
from feedmill_protocol.plan import Last, Plan, Shuffle
from feedmill_protocol.tensors import FieldSpec

from . import addresses, state
from .connection import Connection
from .course import Course, Place
from .keys import load
from .tally import Stats, Tally

if TYPE_CHECKING:
    import torch

    from .private import PrivateServer
    from .tensors import Tensors

__all__ = ["Batch", "Feed", "Options", "Stats", "connect"]

_PREFETCH_LEAST: Final = 4
_PREFETCH_PER_SERVER: Final = 2
"""One batch in the making and one that waits keep a server busy."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A batch with its identity.

    ``tensors`` are in the order of the fields, one row for each of ``keys``. ``index`` is its number in the epoch
    ``epoch``, counted over all ranks. ``skipped`` describes samples that could not be read, 16 of ``missing`` at most.
    ``server`` is the endpoint that it came from.
    """

    tensors: "tuple[torch.Tensor, ...]"
    keys: list[str]
    epoch: int
    index: int
    missing: int
    skipped: tuple[Skipped, ...]
    server: str


class Options(TypedDict, total=False):
    """The arguments of `connect` by name, but for ``url`` and ``stream``."""

    rank: int | None
    world_size: int | None
    seed: int
    shuffle: Shuffle
    batch_size: int | None
    window: int
    run: int
    last: Last
    order: Literal["plan", "arrival"]
    on_error: Literal["raise", "skip"]
    prefetch: int | None
    device: "str | torch.device"
    dtype: "torch.dtype | None"
    timeout: float
    keys: str | os.PathLike[str] | None


def connect(
    url: str | Sequence[str],
    stream: str | None = None,
    *,
    rank: int | None = None,
    world_size: int | None = None,
    seed: int = 0,
    shuffle: Shuffle = True,
    batch_size: int | None = None,
    window: int = 16,
    run: int = 1,
    last: Last = "keep",
    order: Literal["plan", "arrival"] = "plan",
    on_error: Literal["raise", "skip"] = "raise",
    prefetch: int | None = None,
    device: "str | torch.device" = "cpu",
    dtype: "torch.dtype | None" = None,
    timeout: float = 60.0,
    keys: str | os.PathLike[str] | None = None,
) -> "Feed":
    """Open a feed of batches from servers.

    ``url`` names them: ``"tcp://cpu-{0..3}:7880"``, a list, a host name with several addresses. ``stream`` may be left
    out if they have but one. ``rank`` and ``world_size`` say which share of the batches is ours; by default what
    torch.distributed says, or everything; in the first case all ranks must call this, and tell each other what they
    have been given. ``seed``, ``shuffle`` (True, False, "within"), ``window`` (shards shuffled together), ``run``
    (samples that stay together) and ``last`` ("keep", "drop", "pad") make the plan, on which all ranks must agree; see
    `feedmill_protocol.plan.Plan`. ``batch_size`` is the stream's unless given.

    ``order="arrival"`` hands batches out as they come. ``on_error="skip"`` leaves out samples that cannot be read, and
    reports them; "raise" ends the iteration. ``prefetch`` bounds the batches held or asked for; by default two for each
    server that is known when the feed is opened, and at least 4. Tensors arrive on ``device``.

    Pictures whose pipeline ends in "to tensor" and "normalise" travel as bytes and are finished on the device: NCHW in
    channels_last memory, as ``dtype`` (float32, bfloat16 or float16). ``torch.uint8`` hands them out unfinished, and
    `Feed.finish` does the rest later.

    ``keys`` is a folder with ``client.key_secret`` and ``server.key`` as `feedmill keygen` makes them, for servers that
    have keys: traffic is encrypted, and nobody else is talked to.

    Waits for the first server. Raises ServerUnavailable when none makes progress for ``timeout`` seconds, here and
    later; StreamMismatch when servers do not have the stream, or servers or ranks do not have the same; UsageError for
    arguments.
    """
    from . import ranks, tensors  # noqa: PLC0415 # torch takes seconds to import; the command line does without

    with ranks.Agreement(ranks.world() if rank is None or world_size is None else None) as agreement:
        if (rank is None) != (world_size is None):
            raise UsageError(f"rank={rank!r}, world_size={world_size!r}: give both or neither")
        _one_of("order", order, ("plan", "arrival"))
        _one_of("on_error", on_error, ("raise", "skip"))
        if type(shuffle) is not bool and shuffle != "within":
            raise UsageError(f"shuffle={shuffle!r}: expected True, False or 'within'")
        timeout = seconds("timeout", timeout)
        ahead = None if prefetch is None else integer("prefetch", prefetch, 1, limits.OUTSTANDING)
        agreement.device = tensors.device_of(device)
        maker = tensors.Tensors(agreement.device, tensors.dtype_of(dtype))
        urls = addresses.parse(url)
        pair = None if keys is None else load(keys)

        def open_connection() -> Connection:
            return Connection(urls, stream or "", timeout=timeout, allocate=maker.allocate, keys=pair)

        connection = open_connection()
        try:
            contract = connection.wait_contract()
            plan = Plan(
                connection.counts,
                batch_size=contract.batch_size if batch_size is None else batch_size,
                seed=seed,
                shuffle=shuffle,
                window=window,
                run=run,
                rank=agreement.rank if rank is None else rank,
                world_size=agreement.world_size if world_size is None else world_size,
                last=last,
            )
            agreement.reach(state.terms(plan, contract))
        except BaseException:
            connection.close()
            raise
    ahead = ahead or max(_PREFETCH_LEAST, _PREFETCH_PER_SERVER * len(connection.servers()))
    return Feed(connection, plan, contract, open_connection, maker, order=order, on_error=on_error, prefetch=ahead)


class Feed:
    """An endless sequence of epochs; each iteration is one of them. Made by `connect`."""

    def __init__(
        self,
        connection: Connection,
        plan: Plan,
        contract: Welcome,
        reopen: Callable[[], Connection],
        tensors: "Tensors",
        *,
        order: Literal["plan", "arrival"],
        on_error: Literal["raise", "skip"],
        prefetch: int,
    ) -> None:
        self.plan = plan
        self._contract = contract
        self._connection = connection
        self._reopen = reopen
        self._tensors = tensors
        self._order = order
        self._on_error = on_error
        self._prefetch = prefetch
        self._course = Course(plan, ordered=order == "plan")
        self._asked: deque[Place] = deque()  # what was asked for, in order
        self._coming: Iterator[Place] = iter(())  # what is asked for next
        self._iteration = 0
        self._closed = False
        self._tally = Tally()
        self._server: weakref.finalize[[], Feed] | None = None
        self._finalizer = weakref.finalize(self, connection.close)

    def __repr__(self) -> str:
        plan = self.plan
        return (
            f"<Feed {self._contract.stream!r}: {plan.samples:,} samples, {len(plan)} steps of {plan.batch_size}, "
            f"rank {plan.rank} of {plan.world_size}>"
        )

    def __len__(self) -> int:
        """Return the number of batches of an epoch on this rank."""
        return len(self.plan)

    def __iter__(self) -> "Iterator[tuple[torch.Tensor, ...]]":
        """Iterate over the tensors of the next epoch's batches."""
        for batch in self.batches():
            yield batch.tensors

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def samples(self) -> int:
        """Samples of an epoch, over all ranks."""
        return self.plan.samples

    @property
    def fields(self) -> tuple[FieldSpec, ...]:
        """Name, dtype and row shape of each field."""
        return self._contract.fields

    @property
    def epoch(self) -> int:
        """Epoch of the next batch: the one under way, or that of the next iteration."""
        return self._course.epoch

    @property
    def remaining(self) -> int:
        """Batches of that epoch that this rank has still to come: fewer than ``len`` in one that is resumed."""
        return self._course.remaining

    def batches(self) -> Iterator[Batch]:
        """Iterate over the next epoch's batches, with their identity."""
        if self._closed:
            raise UsageError("the feed is closed")
        self._iteration += 1
        iteration = self._iteration
        self._connect()  # an iteration that does not come to its first batch uses up no epoch
        self._course.begin()
        self._seek()
        for _ in range(self._course.remaining):
            self._check(iteration)
            batch = self._take()
            self._check(iteration)  # again: another thread may have come
            self._course.took(batch.index)
            yield batch
        if iteration == self._iteration:
            self._course.end()

    def state_dict(self) -> dict[str, Any]:
        """Return where this feed is: behind the last batch that it has handed out.

        A small dict of strings, numbers and lists; `feedmill.state` explains its keys. What it says of the epoch is
        common to all ranks when all have done the same number of steps, so that of any rank will do for all, and for
        another number of them. With ``order="arrival"`` on several ranks each needs its own, except between epochs.

        When an iteration has ended, that is the beginning of the next epoch. Before that, though the last batch may
        have been handed out, it is the end of this one, and the iteration that goes on from there is empty.
        """
        return state.write(self._course, self._contract)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Have the next iteration go on where a state was taken: with the very next batch, then epoch by epoch.

        All ranks must. Raises UsageError for the state of another stream, other shards, or another plan, and where
        what is left of the epoch cannot be dealt to this number of ranks.
        """
        self._course.go_to(state.read(state_dict, self._course, self._contract))
        self._iteration += 1

    def split(self, part: int, parts: int) -> None:
        """Hand out only every ``parts``-th batch of this rank, from number ``part`` on; begins with epoch 0.

        For processes that share the batches of a rank, each with a feed of its own, like `feedmill.FeedDataset`.
        """
        parts = integer("parts", parts, 1, limits.INT63)
        part = integer("part", part, 0, parts - 1)
        self._course = Course(self.plan, ordered=self._course.ordered, part=part, parts=parts)
        self._iteration += 1

    def finish(self, tensors: "Sequence[torch.Tensor]") -> "tuple[torch.Tensor, ...]":
        """Do to a batch that was handed out as uint8 what is left to do: to float32, scaled and normalised.

        It may have been changed in between (moved, cropped, mixed; in uint8 or float). Raises UsageError when batches
        come finished already.
        """
        if self._tensors.finishing:
            raise UsageError("batches of this feed are finished already; connect(dtype=torch.uint8) leaves that to you")
        return self._tensors.finish(tensors, self.fields)

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of an epoch: the same epoch and seed give the same batches.

        If a state of that very epoch was loaded, it still goes on from there.
        """
        self._course.set_epoch(integer("epoch", epoch, 0, limits.INT63))

    def stats(self) -> Stats:
        """Return what this feed has done so far."""
        return self._tally.stats(self._connection)

    def servers(self) -> dict[str, str]:
        """Return the endpoints of all servers, and what is known of each."""
        return self._connection.servers()

    def own(self, server: "PrivateServer") -> None:
        """Take over the server of this feed, which ends with it; and if it ends before, waiting raises its error."""
        connect = self._reopen

        def reopen() -> Connection:
            connection = connect()
            connection.guard = server.check
            return connection

        self._reopen = reopen
        self._connection.guard = server.check
        # Finalizers run in reverse order: the server must be said goodbye before it is gone.
        self._finalizer.detach()
        self._server = weakref.finalize(self, server.close)
        self._finalizer = weakref.finalize(self, self._connection.close)

    def close(self) -> None:
        """Leave the servers, and end that of a feed of `feedmill.local`. May be called twice."""
        self._closed = True
        self._iteration += 1
        self._finalizer()
        if self._server is not None:
            self._server()

    def _check(self, iteration: int) -> None:
        """Raise UsageError unless this is the iteration that is under way, in this process."""
        if iteration != self._iteration:
            raise UsageError("this iteration is over: the feed was closed, iterated over again, or given a state")
        if self._connection.pid != os.getpid():
            raise UsageError("this iteration is the parent process's; iterate over the feed again in this one")

    def _seek(self) -> None:
        """Ask from here on. What was asked for already and comes from here on stays asked for."""
        dropped: list[Place] = []
        while not all(map(eq, self._asked, self._course.ahead())):
            dropped.append(self._asked.popleft())
        if dropped:
            self._connection.forget([place.key for place in dropped])
        self._coming = islice(self._course.ahead(), len(self._asked), None)
        self._tally.begun = self._tally.begun or time.monotonic()

    def _connect(self) -> None:
        """Make sure of a connection: another process after a fork, and a failed one, needs a new one."""
        if self._connection.pid == os.getpid():
            self._connection.complain()
            if self._connection.usable:
                return
        self._finalizer()
        self._connection = self._reopen()
        self._finalizer = weakref.finalize(self, self._connection.close)
        self._asked.clear()
        contract = self._connection.wait_contract()
        for what in ("stream", "catalog", "fingerprint", "fields", "batch_size"):
            if getattr(contract, what) != getattr(self._contract, what):
                self._connection.close()  # the next iteration looks again
                raise StreamMismatch(
                    f"{contract.server}: stream {contract.stream!r} now has {what} {getattr(contract, what)}, "
                    f"and had {getattr(self._contract, what)} when the feed was opened"
                )

    def _take(self) -> Batch:
        self._fill()
        places = [place for place in self._asked if place.epoch == self._asked[0].epoch]
        if self._order == "plan":
            del places[1:]
        wanted = {place.key: place for place in places}
        begun = time.monotonic()
        key, arrived = self._connection.take(wanted.keys())
        now = time.monotonic()
        self._asked.remove(wanted[key])
        self._fill()  # before the trainer is busy with this one
        message = arrived.message
        keys = arrived.keys.decode(errors="replace").split("\0") if arrived.keys else []
        self._tally.took(arrived, len(keys), begun, now)
        tensors = self._tensors.unpack(arrived.block, self.fields, len(keys))
        if self._tensors.finishing:
            tensors = self._tensors.finish(tensors, self.fields)
        return Batch(tensors, keys, message.epoch, message.batch, message.missing, message.skipped, arrived.server)

    def _fill(self) -> None:
        for place in islice(self._coming, max(0, self._prefetch - len(self._asked))):
            self._ask(place)

    def _ask(self, place: Place) -> None:
        samples = self.plan.spans(place.epoch, place.begin, place.end)
        get = Get(
            stream=self._contract.stream,
            fingerprint=self._contract.fingerprint,
            seed=self.plan.seed,
            epoch=place.epoch,
            batch=place.number,
            spans=len(samples),
            on_error=self._on_error,
        )
        self._connection.want(get, spans.pack(samples), spans.count(samples))
        self._asked.append(place)


def _one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"{name}={value!r}: expected {' or '.join(repr(c) for c in choices)}")
