"""Collation: from the values of samples to those of a batch, in webloader's way.

Tensors become a tensor, arrays an array, numbers an array of numbers; everything else stays a list. Pictures that the
pipeline has left to be finished are finished as those of a feed are.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from feedmill_protocol.errors import SampleError
from feedmill_protocol.tensors import FieldSpec
from feedmill_server.fusion import Finishing
from feedmill_server.loader import Made
from feedmill_server.pipeline import row

from .tensors import Tensors

__all__ = ["Column", "Kind", "describe", "kind_of"]

Kind: TypeAlias = Literal["tensor", "array", "number", "other"]


def kind_of(value: Any) -> Kind:
    """Tell what a batch of such values is."""
    if isinstance(value, torch.Tensor):
        return "tensor"
    if isinstance(value, np.ndarray):
        return "array"
    return "number" if isinstance(value, (bool, int, float, complex, np.number, np.bool_)) else "other"


def describe(value: Any) -> str:
    """Say what the values of a batch must have in common: dtype and shape, or a type."""
    if not isinstance(value, (torch.Tensor, np.ndarray)):
        return f"a {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


class Column:
    """One field, over samples and batches.

    ``finishing`` is what the pipeline has left to do to its pictures. With ``stack``, tensors and arrays of a batch
    become one, and must have one shape.
    """

    def __init__(self, name: str, finishing: Finishing | None = None, *, stack: bool) -> None:
        self.name = name
        self._finishing = finishing
        self._tensors = Tensors(torch.device("cpu"), None) if finishing and finishing.scale else None
        self._stack = stack

    def single(self, sample: Made, value: Any) -> Any:
        """Return the value of one sample, finished: a number as it would come from a batch. Raises SampleError."""
        if kind_of(value) == "number":
            return self._row(sample, value).item()
        return self._finished(value)

    def batch(self, samples: Sequence[Made], values: Sequence[Any]) -> Any:
        """Return the values of a batch. Raises SampleError for one that is unlike the first of them."""
        kind = kind_of(values[0])
        if kind == "number":
            rows = [self._row(sample, value) for sample, value in zip(samples, values, strict=True)]
            self._require_alike(samples, rows)
            return torch.stack(rows).numpy()
        if self._stack and all(map(self._is_picture, values)):
            self._require_alike(samples, values)
            return self._pictures(values)
        values = [self._finished(value) for value in values]
        if kind == "other" or not self._stack:
            return values
        self._require_alike(samples, values)
        return np.stack(values) if kind == "array" else torch.stack(values)

    def received(self, kind: Kind, tensor: torch.Tensor) -> Any:
        """Return what `batch` would, of values that have come as one tensor."""
        if kind == "number":
            return tensor.numpy()
        values = tensor if kind == "tensor" else tensor.numpy()
        return values if self._stack else list(values)

    def rows(self, kind: Kind, tensor: torch.Tensor) -> Sequence[Any]:
        """Return what `single` would of each sample, of values that have come as one tensor."""
        if kind == "number":
            return tensor.tolist()
        return list(tensor if kind == "tensor" else tensor.numpy())

    def _finished(self, value: Any) -> Any:
        return self._pictures([value])[0] if self._is_picture(value) else value

    def _is_picture(self, value: Any) -> bool:
        # What is no image, in a field that may have images, is no bytes where bytes are to be finished.
        return self._finishing is not None and isinstance(value, torch.Tensor) and value.dtype == torch.uint8

    def _pictures(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return uint8 rows [3, H, W] as one tensor in channels_last memory, finished."""
        pictures = torch.stack([pixels.permute(1, 2, 0) for pixels in rows]).permute(0, 3, 1, 2)
        if self._finishing is None or self._tensors is None:
            return pictures
        scale, bias = self._finishing
        spec = FieldSpec(self.name, "uint8", tuple(rows[0].shape), channels_last=True, scale=scale, bias=bias)
        return self._tensors.finish([pictures], [spec])[0]

    def _row(self, sample: Made, number: Any) -> torch.Tensor:
        try:
            return row(self.name, number)
        except (TypeError, ValueError, RuntimeError) as error:  # None among numbers, and what no int64 holds
            raise SampleError(sample.shard, sample.key, f"{type(error).__name__}: {error}") from None

    def _require_alike(self, samples: Sequence[Made], values: Sequence[Any]) -> None:
        first = describe(values[0])
        for sample, value in zip(samples, values, strict=True):
            if (found := describe(value)) != first:
                raise SampleError(
                    sample.shard,
                    sample.key,
                    f"field {self.name!r} is {found}, but the batch begins with {first}; end its transforms with a "
                    "fixed size and dtype, or give tensor_batches=False",
                )
