"""The recipe of a loader: what is made of samples, and then of batches, in webloader's words."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from feedmill_protocol.errors import UsageError
from feedmill_server.decode import Decode, decoder
from feedmill_server.fields import parse
from feedmill_server.pipeline import KEY, Pipeline, Stage

from .converters import Converter, apply, choose

__all__ = ["Batch", "Functions", "Recipe", "Stages"]

Batch: TypeAlias = Any
"""With fields a list of values, without them a dict. A union would have everybody ask which, who knows it."""

Functions: TypeAlias = str | Converter | Sequence[str | Converter | None] | None
Stages: TypeAlias = Stage | Sequence[Stage] | None


class Recipe:
    """The arguments of `feedmill.WebLoader` that say what is made of samples and batches, checked.

    ``fields`` are their names, None for dicts of all members. Raises UsageError.
    """

    def __init__(
        self,
        fields: str | Sequence[str] | None,
        *,
        decode: Decode,
        pipeline: Stages,
        transforms: Functions,
        batch_transforms: Functions,
        converters: Functions,
        exact: bool,
    ) -> None:
        if fields is None and not transforms is batch_transforms is converters is None:
            raise UsageError("transforms, batch_transforms and converters are for fields; say which in fields=")
        self.fields = None if fields is None else [field.name for field in parse(fields)]
        self._transforms = self._in_turn("transforms", transforms)
        self._for_batches = [
            self._in_turn("batch_transforms", batch_transforms),
            self._in_turn("converters", converters),
        ]
        # To be seen as what it is by what recognises pipelines, "PIL" stays that.
        self._decode = decode if isinstance(decode, str) else decoder(decode, images="rgb")
        self._stages = pipeline
        self._exact = exact

    def pipeline(self) -> Pipeline:
        """Return the pipeline to run in this process. Without fields, it has only stages to run."""
        if self.fields is not None:
            return self._pipeline(self.fields, self._transforms, self._stages)
        # A stage has all members read and decoded, though it be one that changes nothing.
        return self._pipeline([KEY], [None], iter if self._stages is None else self._stages)

    def to_send(self, names: Sequence[str], batch_size: int) -> Pipeline:
        """Return the pipeline that a server runs for these fields: keys come with every batch, so they are left out.

        Raises UsageError where nothing is left, or something should be made of keys.
        """
        given = list(zip(names, self._transforms or [None] * len(names), strict=True))
        sent = [(name, transform) for name, transform in given if name != KEY]
        if any(name == KEY and transform for name, transform in given):
            raise UsageError(f"transforms: {KEY} comes from no worker; change it in batch_transforms, or use WebLoader")
        if not sent:
            raise UsageError(f"fields={' '.join(names)!r}: give another beside {KEY}, or use WebLoader")
        fields, transforms = ([name for name, _ in sent], [transform for _, transform in sent])
        return self._pipeline(fields, transforms, self._stages, batch_size)

    def finish(self, batch: Batch) -> Batch:
        """Return a batch, or the values of one sample, with what is left to do in the trainer done."""
        if not isinstance(batch, dict):
            for functions in self._for_batches:
                batch = apply(functions, batch)
        return batch

    def _in_turn(self, name: str, given: Functions) -> list[Converter | None]:
        """Return one function for each field: those given, over and over."""
        functions, fields = choose(name, given) or (None,), self.fields or []
        if len(functions) > max(1, len(fields)):
            raise UsageError(f"{name}: {len(functions)} were given for the {len(fields)} fields {' '.join(fields)}")
        return [functions[i % len(functions)] for i in range(len(fields))]

    def _pipeline(
        self, fields: Sequence[str], transforms: Sequence[Converter | None], stages: Stages, batch_size: int = 1
    ) -> Pipeline:
        return Pipeline(
            fields,
            decode=self._decode,
            transforms=transforms,
            pipeline=stages,
            batch_size=batch_size,
            exact=self._exact,
        )
