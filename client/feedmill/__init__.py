"""feedmill: training batches as a service.

feed = feedmill.connect("tcp://cpu-{0..3}:7880", stream="train")
for images, labels in feed:  # one epoch
    ...
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

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
from .private import installed as _installed
from .private import local
from .verdict import Verdict

if TYPE_CHECKING:
    from .converters import tonumpy, totorch
    from .dataset import FeedDataset
    from .metrics import FeedCollector
    from .multiwebloader import MultiWebLoader
    from .tensorcom import Connection, publish
    from .webloader import WebLoader

__all__ = [
    "Batch",
    "Connection",
    "DataError",
    "Feed",
    "FeedCollector",
    "FeedDataset",
    "FeedmillError",
    "MultiWebLoader",
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
    "WebLoader",
    "connect",
    "local",
    "publish",
    "tonumpy",
    "totorch",
]

_NEEDED: Final = {
    "FeedCollector": ("prometheus_client",),
    "MultiWebLoader": ("feedmill_server", "torchvision"),
    "WebLoader": ("feedmill_server", "torchvision"),
}
# Without the server extra, `from feedmill import *` takes what there is.
__all__[:] = [name for name in __all__ if all(map(_installed, _NEEDED.get(name, ())))]

__version__ = "0.1.0"


_LATER: Final = {
    "Connection": "tensorcom",
    "FeedCollector": "metrics",
    "FeedDataset": "dataset",  # a subclass of torch's, and torch takes seconds to import
    "MultiWebLoader": "multiwebloader",
    "WebLoader": "webloader",
    "publish": "tensorcom",
    "tonumpy": "converters",
    "totorch": "converters",
}
"""Names that are imported when they are first used, and the modules that have them."""


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{_LATER[name]}", __package__), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith(f"{__package__}."):
            raise
        raise UsageError(f"feedmill.{name} needs {error.name}; pip install 'feedmill[server]'") from None
