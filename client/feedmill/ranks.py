"""The ranks of torch.distributed: which of them we are, and whether all of them mean the same epoch.

Ranks that differ in seed or data would see samples twice and others never, and nobody would notice. So they tell each
other before the first batch. All of them must: one that cannot says why, or the others would wait for it.
"""

import json
import os
import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

import torch
from torch import distributed

from feedmill_protocol.errors import StreamMismatch
from feedmill_protocol.messages import shorten

__all__ = ["Agreement", "world"]

_BYTES: Final = 4096
"""What a rank says, as JSON padded with spaces: three names of 128 bytes, each escaped at worst, and a few numbers."""

_REASON_BYTES: Final = 512
"""Escaped at worst, six times as many."""


def world() -> tuple[int, int] | None:
    """Return rank and world size of this process if torch.distributed is initialised.

    Warns where a launcher has said that there are several ranks, and nobody has told torch.
    """
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    several = os.environ.get("WORLD_SIZE", "1")
    if "RANK" in os.environ and several != "1":
        warnings.warn(
            f"RANK={os.environ['RANK']} and WORLD_SIZE={several} are set, but torch.distributed is not initialised: "
            "this process will get every batch, and so will the others; call torch.distributed.init_process_group "
            "first, or give rank and world_size",
            stacklevel=3,
        )
    return None


class Agreement:
    """A block in which all ranks of ``group`` come to an agreement, or none does.

    Each calls `reach`; or it leaves the block by an exception, and the others are told. Without a group (None) there
    is but one rank. They speak over ``device`` if the group's backend does not over the CPU.
    """

    def __init__(self, group: tuple[int, int] | None) -> None:
        self.rank, self.world_size = group or (0, 1)
        self._awaited = group is not None
        self.device = torch.device("cpu")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if self._awaited and isinstance(error, Exception):
            _exchange({"error": shorten(str(error), _REASON_BYTES)}, self.device)

    def reach(self, terms: Mapping[str, str | int]) -> None:
        """Compare terms with those of all ranks. Raises StreamMismatch, on every rank, unless all have the same.

        Waits for all ranks, no longer than the process group's timeout.
        """
        if not self._awaited:
            return
        self._awaited = False
        said = _exchange({"terms": dict(terms)}, self.device)
        for rank, theirs in enumerate(said):
            if "error" in theirs:
                raise StreamMismatch(f"rank {rank} could not open its feed: {theirs['error']}")
        first = said[0]["terms"]
        for rank, theirs in enumerate(said):
            different = [name for name in first if theirs["terms"][name] != first[name]]
            if different:
                what = ", ".join(f"{name}={theirs['terms'][name]!r} (rank 0: {first[name]!r})" for name in different)
                raise StreamMismatch(
                    f"rank {rank} has {what}; all ranks must connect with the same arguments, to the same stream"
                )


def _exchange(mine: dict[str, object], preferred: torch.device) -> list[dict[str, Any]]:
    """Return what every rank has said."""
    text = json.dumps(mine).encode().ljust(_BYTES)
    ours = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(_device(preferred))
    everybodys = [torch.empty_like(ours) for _ in range(distributed.get_world_size())]
    distributed.all_gather(everybodys, ours)
    return [json.loads(bytes(said.cpu().numpy())) for said in everybodys]


def _device(preferred: torch.device) -> torch.device:
    """Return where the process group takes tensors from: the CPU, unless its backend is for an accelerator only."""
    backends = dict(pair.split(":") for pair in distributed.get_backend_config().split(","))
    if "cpu" in backends:
        return torch.device("cpu")
    return preferred if preferred.type in backends else torch.device(next(iter(backends)))  # the current one
