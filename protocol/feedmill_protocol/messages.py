"""The messages: what each means, what it carries, and which bytes follow it. `docs/wire.md` is their specification.

Every field is annotated with the check that the receiver applies to it. New optional fields may be added within a
protocol version; receivers ignore fields that they do not know. Anything else needs a new version.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeAlias, cast

from . import limits
from .errors import ProtocolError
from .schema import flag, integer, number, one_of, record, sequence, text
from .spans import SPAN_BYTES
from .tensors import ITEM_BYTES, FieldSpec, TensorSpec, offsets

__all__ = [
    "Batch",
    "Bye",
    "Cancel",
    "Drain",
    "Fail",
    "Get",
    "Hello",
    "Message",
    "Ping",
    "Pong",
    "Reject",
    "Skipped",
    "Welcome",
    "check_field",
    "shorten",
]

_dtype = one_of(*ITEM_BYTES)
_size = integer(0, 2**40)
_shape = sequence(_size, limits.RANK)
_row = sequence(_size, limits.RANK - 1)  # of one sample
_numbers = sequence(number, limits.CHANNELS)
_any_field = record(
    FieldSpec,
    name=text(limits.NAME_BYTES),
    dtype=_dtype,
    shape=_row,
    channels_last=flag,
    scale=_numbers,
    bias=_numbers,
)


def check_field(value: object, path: str) -> FieldSpec:
    """Accept a field whose parts agree with each other."""
    field = cast("FieldSpec", _any_field(value, path))
    # A size of 0 makes a row of no bytes, but not the strides of a tensor small.
    if math.prod(max(1, size) for size in field.shape) * ITEM_BYTES[field.dtype] > limits.BLOCK_BYTES:
        raise ProtocolError(f"{path}: no row of shape {list(field.shape)} fits {limits.BLOCK_BYTES} bytes")
    if (field.channels_last or field.scale) and len(field.shape) != 3:
        raise ProtocolError(f"{path}: a shape of {len(field.shape)} dimensions has no channels")
    if len(field.scale) != len(field.bias) or (field.scale and len(field.scale) != field.shape[0]):
        raise ProtocolError(f"{path}: scale and bias are not one number for each channel")
    if field.scale and field.dtype != "uint8":
        raise ProtocolError(f"{path}: rows of {field.dtype} cannot be finished, only those of uint8")
    return field


Natural = Annotated[int, integer(0, limits.INT63)]
Name = Annotated[str, text(limits.NAME_BYTES)]
Key = Annotated[str, text(limits.KEY_BYTES)]
Reason = Annotated[str, text(limits.REASON_BYTES)]
Flag = Annotated[bool, flag]


def shorten(value: str, max_bytes: int) -> str:
    """Cut a text that is longer than max_bytes in UTF-8 in its middle, where shard names and reasons say least."""
    raw = value.encode(errors="replace")
    if len(raw) <= max_bytes:
        return raw.decode()
    half = (max_bytes - 3) // 2
    return raw[:half].decode(errors="ignore") + "..." + raw[-half:].decode(errors="ignore")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A sample that is missing from a batch: shard and key name it, reason says why."""

    shard: str
    key: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """Client: tell me about this stream ("" for the only one). Leave out a catalog that I have (its digest)."""

    type: ClassVar = "HELLO"
    payload_bytes: ClassVar = 0

    stream: Name = ""
    catalog: Name = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Get:
    """Client: send me this batch. Its spans (`spans` of them) are the payload.

    The tensors depend on stream, fingerprint, seed, epoch, on_error and the spans. `batch` and `attempt` come back
    in the reply and mean nothing to the server. A server with another fingerprint must refuse.
    """

    type: ClassVar = "GET"

    stream: Name
    fingerprint: Name
    seed: Natural
    epoch: Natural
    batch: Natural
    spans: Annotated[int, integer(1, limits.BATCH_SAMPLES)]
    on_error: Annotated[str, one_of("raise", "skip")] = "raise"
    attempt: Natural = 0

    @property
    def payload_bytes(self) -> int:
        """Bytes that follow the header."""
        return self.spans * SPAN_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Client: I no longer want this batch. Nothing need answer it, and the batch may still come."""

    type: ClassVar = "CANCEL"
    payload_bytes: ClassVar = 0

    epoch: Natural
    batch: Natural


@dataclass(frozen=True, slots=True)
class Ping:
    """Client: tell me that you are there and get on."""

    type: ClassVar = "PING"
    payload_bytes: ClassVar = 0


@dataclass(frozen=True, slots=True)
class Bye:
    """Client: I leave; forget what I asked for."""

    type: ClassVar = "BYE"
    payload_bytes: ClassVar = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """Server: what I am and what the stream is.

    `boot` differs after every start. `catalog` is the digest of the shards, `fingerprint` that of everything the
    tensors depend on. `workers` says how fast I am relative to my like. The payload is the number of samples of
    each of `shards` shards as little-endian uint32, left out (`counts` false) when HELLO named the same catalog.
    """

    type: ClassVar = "WELCOME"

    server: Name
    boot: Name
    stream: Name
    fields: Annotated[tuple[FieldSpec, ...], sequence(check_field, limits.FIELDS)]
    batch_size: Annotated[int, integer(1, limits.BATCH_SAMPLES)]
    catalog: Name
    fingerprint: Name
    shards: Annotated[int, integer(1, limits.SHARDS)]
    workers: Annotated[int, integer(1, 65_536)]
    counts: Flag

    @property
    def payload_bytes(self) -> int:
        """Bytes that follow the header."""
        return 4 * self.shards if self.counts else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Server: the batch that was asked for. The payload is its block, then `keys` bytes of sample keys.

    One row of every tensor for each sample, in the order of the spans, less the skipped ones; the keys of those
    rows, in UTF-8 with a NUL between them. At most `limits.SKIPPED` of the `missing` samples are described.
    """

    type: ClassVar = "BATCH"

    epoch: Natural
    batch: Natural
    attempt: Natural
    tensors: Annotated[
        tuple[TensorSpec, ...],
        sequence(record(TensorSpec, dtype=_dtype, shape=_shape), limits.FIELDS),
    ]
    keys: Annotated[int, integer(0, limits.KEYS_BYTES)]
    missing: Annotated[int, integer(0, limits.BATCH_SAMPLES)] = 0
    skipped: Annotated[
        tuple[Skipped, ...],
        sequence(
            record(
                Skipped,
                shard=text(limits.KEY_BYTES),
                key=text(limits.KEY_BYTES),
                reason=text(limits.SKIP_REASON_BYTES),
            ),
            limits.SKIPPED,
        ),
    ] = ()

    @property
    def payload_bytes(self) -> int:
        """Bytes that follow the header."""
        return offsets(self.tensors)[1] + self.keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """Server: this batch cannot be had from me. Retryable: ask again or elsewhere. Otherwise the data is bad.

    A bad sample is named by `shard` and `key`; a bad shard by `shard` alone.
    """

    type: ClassVar = "FAIL"
    payload_bytes: ClassVar = 0

    epoch: Natural
    batch: Natural
    attempt: Natural
    retryable: Flag
    reason: Reason
    shard: Key = ""
    key: Key = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pong:
    """Server: I am here. `progress` counts the parts of batches that I ever finished; `queue` those still to do.

    Of my workers, so many are `idle`.
    """

    type: ClassVar = "PONG"
    payload_bytes: ClassVar = 0

    progress: Natural
    queue: Natural
    idle: Natural = 0


@dataclass(frozen=True, slots=True)
class Drain:
    """Server: I finish what you asked for and then leave; ask others from now on."""

    type: ClassVar = "DRAIN"
    payload_bytes: ClassVar = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """Server: I will not do this. After `limit` and `damaged` ask again; otherwise that is no use."""

    type: ClassVar = "REJECT"
    payload_bytes: ClassVar = 0

    code: Annotated[str, one_of("version", "stream", "fingerprint", "limit", "protocol", "damaged")]
    reason: Reason


Message: TypeAlias = Hello | Get | Cancel | Ping | Bye | Welcome | Batch | Fail | Pong | Drain | Reject
