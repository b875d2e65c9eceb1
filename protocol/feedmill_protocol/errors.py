"""Every exception that feedmill raises on purpose.

    FeedmillError
    ├── UsageError(ValueError)              you: an argument, option or file that cannot work
    ├── ProtocolError                       they: a peer broke the wire format
    │   ├── Damaged                         a message is not what was sent; handled within, by asking again
    │   └── VersionMismatch                 the peer speaks another version of it
    ├── ServerUnavailable(TimeoutError)     nobody answered in time
    ├── StreamMismatch                      servers answer, but not with the stream that was asked for
    └── DataError                           the data cannot become a batch
        ├── ShardError                      a shard is missing, damaged, or no shard at all
        ├── SampleError                     one sample cannot be read, decoded, or transformed
        └── PipelineError                   the pipeline itself does not work

Data lives in attributes, the sentence in ``__str__``. Any other exception that comes out of feedmill is a bug.

torch's DataLoader makes the exceptions of its workers anew, of a text alone. So each class takes that too: it is then
the sentence, and the attributes say nothing.
"""

__all__ = [
    "Damaged",
    "DataError",
    "FeedmillError",
    "PipelineError",
    "ProtocolError",
    "SampleError",
    "ServerUnavailable",
    "ShardError",
    "StreamMismatch",
    "UsageError",
    "VersionMismatch",
]


class FeedmillError(Exception):
    """Root of the tree above."""


class UsageError(FeedmillError, ValueError):
    """An argument, option or file of the caller's cannot work; the message says which and what would."""


class ProtocolError(FeedmillError):
    """A peer sent what the wire format does not allow."""


class Damaged(ProtocolError):
    """A message was changed on its way: a checksum is wrong. What it was an answer to is asked again."""


class VersionMismatch(ProtocolError):
    """A peer speaks a version of the wire format that this side does not.

    ``theirs`` and ``ours`` are the versions, ``peer`` says who it is.
    """

    def __init__(self, theirs: int, ours: int, peer: str = "the peer") -> None:
        super().__init__(theirs, ours, peer)
        self.theirs = theirs
        self.ours = ours
        self.peer = peer

    def __str__(self) -> str:
        return (
            f"{self.peer} speaks version {self.theirs} of feedmill's protocol, this side version {self.ours}; "
            "install the same feedmill release on servers and trainers"
        )


class ServerUnavailable(FeedmillError, TimeoutError):
    """No server has given a sign of progress for ``timeout`` seconds.

    ``servers`` maps every endpoint that was tried to what is known of it.
    """

    def __init__(self, timeout: float | str, servers: dict[str, str] | None = None) -> None:
        super().__init__(*([timeout] if servers is None else [timeout, servers]))
        self.text = str(timeout) if servers is None else ""
        self.timeout = 0.0 if isinstance(timeout, str) else timeout
        self.servers = servers or {}

    def __str__(self) -> str:
        if self.text:
            return self.text
        known = "; ".join(f"{endpoint}: {state}" for endpoint, state in self.servers.items())
        return (
            f"no server made progress for {self.timeout:g} s ({known or 'the name resolves to no address'}); "
            "start one with 'feedmill serve', or raise timeout="
        )


class StreamMismatch(FeedmillError):
    """A server does not have the stream, or has other data or another pipeline under its name."""


class DataError(FeedmillError):
    """The data cannot become a batch."""


class ShardError(DataError):
    """A shard is missing, damaged, or not a shard. ``shard`` names it, ``reason`` says why."""

    def __init__(self, shard: str, reason: str | None = None) -> None:
        super().__init__(*([shard] if reason is None else [shard, reason]))
        self.shard, self.reason = ("", shard) if reason is None else (shard, reason)

    def __str__(self) -> str:
        return f"shard {self.shard}: {self.reason}" if self.shard else self.reason


class SampleError(DataError):
    """One sample cannot become a row of a batch. ``shard`` and ``key`` name it, ``reason`` says why."""

    def __init__(self, shard: str, key: str = "", reason: str | None = None) -> None:
        super().__init__(*([shard] if reason is None else [shard, key, reason]))
        self.shard, self.key, self.reason = ("", "", shard) if reason is None else (shard, key, reason)

    def __str__(self) -> str:
        return f"shard {self.shard}, sample {self.key}: {self.reason}" if self.shard else self.reason


class PipelineError(DataError):
    """The pipeline cannot be loaded, or makes of no sample what a batch needs."""
