"""feedmill: training batches as a service.

feed = feedmill.connect("tcp://cpu-{0..3}:7880", stream="train")
for images, labels in feed:  # one epoch
    ...
"""

from typing import TYPE_CHECKING

from feedmill_protocol.errors import (
    DataError,
    FeedmillError,
    PipelineError,
    ProtocolError,
    SampleError,
    ServerUnavailable,
    ShardError,
    StreamMismatch,
    UsageError,
    VersionMismatch,
)

from .feed import Batch, Feed, Stats, connect
from .verdict import Verdict

if TYPE_CHECKING:
    from .dataset import FeedDataset

__all__ = [
    "Batch",
    "DataError",
    "Feed",
    "FeedDataset",
    "FeedmillError",
    "PipelineError",
    "ProtocolError",
    "SampleError",
    "ServerUnavailable",
    "ShardError",
    "Stats",
    "StreamMismatch",
    "UsageError",
    "Verdict",
    "VersionMismatch",
    "connect",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name == "FeedDataset":  # a subclass of torch's, and torch takes seconds to import
        from .dataset import FeedDataset  # noqa: PLC0415

        return FeedDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
