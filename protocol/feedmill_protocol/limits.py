"""Every bound of the protocol, each with its reason. Both ends hold the other to them."""

from typing import Final

PROTOCOL_VERSION: Final = 1

HEADER_BYTES: Final = 16 * 1024
"""Frame 0. The largest honest header is a BATCH with `FIELDS` descriptors and `SKIPPED` reports: under 12 KiB."""

FRAME_BYTES: Final = 1024 * 1024
"""Payload is sent in frames of this size. Small enough that libzmq recycles their memory and a PONG never waits
long behind a batch; large enough that the cost of a frame (about 10 µs) disappears against copying it."""

FRAME_BYTES_MAX: Final = 64 * 1024 * 1024
"""What a receiver accepts as one frame (``ZMQ_MAXMSGSIZE``), so that other senders may cut differently."""

FRAMES: Final = 8192
"""Frames of a message: twice what `BLOCK_BYTES` has. More would cost their receiver time even where they are empty."""

BLOCK_BYTES: Final = 4 * 1024**3
"""One batch. A batch is built and held in memory on both sides; 4 GiB is 7,100 float32 images of 224²."""

ALIGNMENT: Final = 64
"""Every tensor of a block starts at a multiple of this: a cache line, and what vector units and CUDA like best."""

BATCH_SAMPLES: Final = 65_536
"""Samples of one batch: 768 KiB of spans at worst."""

FIELDS: Final = 32
RANK: Final = 8
"""Dimensions of a tensor, the batch dimension included."""

CHANNELS: Final = 8
"""Channels that a client may be asked to finish: pictures have at most 4, and the numbers must fit a header."""

SHARDS: Final = 2_000_000
"""Shards of a stream: 8 MB of counts. A million shards of a thousand samples is a billion samples."""

SHARD_SAMPLES: Final = 2**32 - 1
"""Samples of a shard, and the largest index: spans are 32-bit integers."""

WINDOW_RUNS: Final = 128 * 1024 * 1024
"""Runs that are shuffled together. Sorting so many takes a minute, and some gigabytes."""

OUTSTANDING: Final = 256
"""Requests that one client may have open at one server. `prefetch` defaults to a handful."""

SKIPPED: Final = 16
"""Skipped samples reported one by one in a BATCH header; the rest are counted."""

NAME_BYTES: Final = 128
"""Names of streams, servers and fields; like all text, UTF-8."""

KEY_BYTES: Final = 200
"""Shard names and sample keys in reports; longer ones are cut in the middle."""

REASON_BYTES: Final = 1024
"""Reasons in FAIL and REJECT."""

SKIP_REASON_BYTES: Final = 96
"""Reasons in a BATCH header: keeps `SKIPPED` reports of shard, key and reason well inside `HEADER_BYTES`."""

KEYS_BYTES: Final = 64 * 1024 * 1024
"""The sample keys that follow a batch's tensors: 1 KiB for each of `BATCH_SAMPLES`."""

INT63: Final = 2**63 - 1
"""Seeds, epochs and batch numbers fit a signed 64-bit integer, the smallest integer of the languages around."""
