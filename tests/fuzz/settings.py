"""Fuzzing of configurations: whatever file, environment and command line say, it is a server or UsageError."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from feedmill_protocol.errors import UsageError
from feedmill_server.config import ServerConfig
from fuzz.mutations import mutate

__all__ = ["merge"]

_FILES: Final = (
    b"""bind = "tcp://127.0.0.1:7880"
workers = 32
memory = "8GiB"
cache = "cache"
cache_bytes = "1.5TB"
name = "mill"
jpeg = "turbo"
insecure = false

[streams.train]
shards = ["train-{000000..001280}.tar"]
preset = "imagenet-train"
batch_size = 256
exact = true

[streams.val]
shards = "val-*.tar"
pipeline = "augment.py:val"
""",
    b"""memory = 1073741824
insecure = true
bind = "tcp://[::1]:*"
streams = {train = {shards = ["a.tar"], preset = "imagenet-eval"}}
""",
    b"""bind = 'ipc:///run/mill'
[streams]
train.shards = ['a', 'b']
train.pipeline = "module:NAME"
"train".batch_size = 1
""",
)

_TOKENS: Final = (
    b"9" * 400,
    b"0x" + b"f" * 5000,
    b"9" * 5000,
    b"1e400",
    b"inf",
    b"nan",
    b"-1",
    b"true",
    b"'5\xe2\x84\xaa'",  # the sign for kelvin is a K, to a pattern that ignores case
    b"'\xd9\xa3'",
    b"1979-05-27T07:32:00Z",
    b"[" * 3000,
    b"[]",
    b"{}",
    b"[[streams]]",
    b"[streams.'']",
    b"[streams.train.shards]",
    b"''",
    b"'tcp://0.0.0.0:7880'",
    b"'tcp://localhost:0'",
    b"'tcp://[::1%lo]:70000'",
    b"'tcp://127.0.0.1:" + b"9" * 5000 + b"'",
    b'"\\u0000"',
    b"'" + b"x" * 300 + b"'",
    b"workers",
    b"exact",
    b"nonsense = 1\n",
    b"\xff\xfe",
)

_VALUES: Final[tuple[Any, ...]] = (
    "",
    "0",
    "1",
    "-1",
    "yes",
    "no",
    "maybe",
    "1.5GiB",
    "9" * 400,
    "9" * 400 + "TiB",
    "5\N{KELVIN SIGN}",
    "\N{ARABIC-INDIC DIGIT THREE}",
    "9" * 5000,
    "tcp://127.0.0.1:*",
    "tcp://127.0.0.1:" + "9" * 5000,
    "tcp://0.0.0.0:1",
    "tcp://\udcff:1",
    "ipc://",
    "ipc://\udcff",
    "\udcff",
    "x" * 300,
    "imagenet-train",
    "file.py:NAME",
    "a.tar b.tar",
)
"""What the environment may say: bytes that are no UTF-8 come as surrogates."""

_KEYS: Final = (
    "bind",
    "workers",
    "memory",
    "cache",
    "cache_bytes",
    "name",
    "jpeg",
    "insecure",
    "stream",
    "shards",
    "preset",
    "pipeline",
    "batch_size",
    "exact",
)


def _mutated(draw: random.Random) -> bytes:
    text = draw.choice(_FILES)
    for _ in range(draw.choice((0, 1, 1, 2))):
        if draw.random() < 0.4:
            text = mutate(text, _FILES, draw)
            continue
        lines = text.split(b"\n")
        at = draw.randrange(len(lines))
        name, equals, _ = lines[at].partition(b"=")
        lines[at] = name + equals + draw.choice(_TOKENS) if equals and draw.random() < 0.8 else draw.choice(_TOKENS)
        text = b"\n".join(lines)
    return text


def merge(file: Path) -> Callable[[random.Random], str]:
    """Return a case: it writes ``file``, and has it merged with an environment and a command line."""

    def case(draw: random.Random) -> str:
        options: dict[str, Any] = {}
        if draw.random() < 0.8:
            file.write_bytes(_mutated(draw))
            options["config"] = str(file)
        environ = {
            f"FEEDMILL_{draw.choice(_KEYS).upper()}": draw.choice(_VALUES) for _ in range(draw.choice((0, 0, 1, 3)))
        }
        for _ in range(draw.choice((0, 0, 1))):
            options[draw.choice(_KEYS[:8])] = draw.choice(_VALUES)
        stream = {draw.choice(_KEYS[9:]): draw.choice(_VALUES) for _ in range(draw.choice((0, 0, 1, 2)))}
        if "shards" in stream:
            stream["shards"] = [stream["shards"]]
        try:
            config = ServerConfig.merge(options, stream, environ)
        except UsageError as error:
            return "refused" if str(error) else "refused without a word"
        assert config.streams
        assert config.memory >= 0
        return "accepted"

    return case
