"""``MultiWebLoader``: webloader's loader of several processes, as an ordinary client of a private server."""

from collections.abc import Iterator, Sequence
from typing import Unpack

from feedmill_protocol import limits
from feedmill_protocol.arguments import integer
from feedmill_protocol.errors import PipelineError, UsageError
from feedmill_server.loader import Made
from feedmill_server.pipeline import KEY

from .collation import Column, Kind, describe, kind_of
from .converters import Pipe, pipe
from .feed import Batch as Received
from .feed import Feed
from .private import local
from .recipe import Batch
from .webloader import ENDLESS, Options, Shards, WebLoader

__all__ = ["MultiWebLoader"]


class MultiWebLoader(WebLoader):
    """A `WebLoader` whose samples are made by ``processes`` worker processes of a private server.

    Batches are the same, in the same order. Up to ``queue_size`` are made ahead. ``multi_pipe`` is a function from the
    iterator of batches to the one that is handed out, or "sync_gpu_transfer" or "async_gpu_transfer", which bring
    arrays and tensors to the GPU. It runs in this process, as do batch_transforms and converters. Every sample comes
    once, whatever the number of processes; so ``split=False`` is refused.

    What is sent are tensors: every field must end as a tensor, an array or a number, of the same dtype and shape for
    all samples. A ``pipeline`` sees one sample at a time, and makes one of it. The data are shards, not an iterable.

    The server starts with the first iteration and stays for the next. It ends with `close`, with an iteration that is
    left early, with the loader, and with this process, whatever way that ends. A worker that dies is replaced.
    """

    def __init__(
        self,
        urls: Shards,
        batches: int = ENDLESS,
        *,
        processes: int = 4,
        queue_size: int = 10,
        multi_pipe: str | Pipe | None = None,
        split: bool | None = None,
        **options: Unpack[Options],
    ) -> None:
        self._processes = integer("processes", processes, 1, limits.INT63)
        self._ahead = integer("queue_size", queue_size, 1, limits.OUTSTANDING)
        self._pipe = pipe(multi_pipe)
        if split is not None and not split:
            raise UsageError(
                "split=False: the processes share the samples, and each comes once; epochs=n has each come n times"
            )
        self._feed: Feed | None = None
        super().__init__(urls, batches, **options)
        if self._samples is not None:
            raise UsageError("an iterable is read in one process: give it to WebLoader, or write it to shards first")
        if (first := next(self._loader.groups(0, [2]), None)) is None:
            raise PipelineError("pipeline: makes no sample of any; in other processes it must make one of each")
        self._fields = _learn(first, self._recipe.fields)
        if self._recipe.fields is None:
            self._columns = [Column(name, stack=self._stack) for name, _ in self._fields]
        self._sent = self._recipe.to_send([name for name, _ in self._fields], self._order["batch_size"])

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over batches, from the epochs behind those that the last iteration has begun."""
        batches = self._run()
        return iter(self._pipe(batches)) if self._pipe else batches

    def close(self) -> None:
        """Stop the server. May be called twice; iterating starts another."""
        super().close()
        if self._feed is not None:
            self._feed.close()
            self._feed = None

    def _run(self) -> Iterator[Batch]:
        try:
            yield from super().__iter__()
        except BaseException:  # GeneratorExit, too: whoever leaves a loop may never come back
            self.close()
            raise

    def _batches_of(self, epoch: int) -> Iterator[Batch]:
        if self._feed is None:
            self._feed = local(
                self._sent,
                self._shards,
                repeated=True,
                workers=self._processes,
                prefetch=self._ahead,
                **self._order,
            )
        self._feed.set_epoch(epoch)
        for received in self._feed.batches():
            yield from self._values(received)

    def _values(self, received: Received) -> Iterator[Batch]:
        single = self.batch_size is None
        tensors = iter(received.tensors)
        columns = [
            received.keys if name == KEY else (column.rows if single else column.received)(kind, next(tensors))
            for (name, kind), column in zip(self._fields, self._columns, strict=True)
        ]
        names = [name for name, _ in self._fields]
        for values in zip(*columns, strict=True) if single else [columns]:
            yield dict(zip(names, values, strict=True)) if self._recipe.fields is None else list(values)


def _learn(first: Sequence[Made], fields: Sequence[str] | None) -> list[tuple[str, Kind]]:
    """Return every field and what it is in this process; on the way here all are tensors. Raises UsageError.

    ``first`` are the first two samples, as they come out of the pipeline.
    """
    names = list(first[0].values) if fields is None else fields
    found = [[made.values.get(name) for name in names] if fields is None else made.values for made in first]
    learned = []
    for name, *values in zip(names, *found, strict=True):
        kind = kind_of(values[0])
        looks = list(dict.fromkeys(map(describe, values)))
        if name != KEY and kind == "other":
            raise UsageError(
                f"field {name!r} is {looks[0]} in sample {first[0].key}, and only tensors come from other processes: "
                "end its transforms with a tensor, an array or a number, leave it out of fields=, or use WebLoader"
            )
        if kind in {"tensor", "array"} and len(looks) > 1:
            raise UsageError(
                f"field {name!r} is {looks[0]} in sample {first[0].key} and {looks[1]} in sample {first[1].key}, and "
                "tensors of one shape come from other processes: end its transforms with a fixed size, or use WebLoader"
            )
        learned.append((name, kind))
    return learned
