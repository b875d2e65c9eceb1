"""feedmill: training batches as a service.

feed = feedmill.connect("tcp://cpu-{0..3}:7880", stream="train")
for images, labels in feed:  # one epoch
    ...
"""

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

__all__ = [
    "Batch",
    "DataError",
    "Feed",
    "FeedmillError",
    "PipelineError",
    "ProtocolError",
    "SampleError",
    "ServerUnavailable",
    "ShardError",
    "Stats",
    "StreamMismatch",
    "UsageError",
    "VersionMismatch",
    "connect",
]

__version__ = "0.1.0"
