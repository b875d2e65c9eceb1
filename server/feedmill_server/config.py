"""The configuration of a server: command line over environment over a TOML file over defaults.

Keys are the same everywhere: ``--batch-size``, ``FEEDMILL_BATCH_SIZE``, ``batch_size``. Keys that nobody knows are
errors.
"""

import difflib
import logging
import os
import re
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Self

from feedmill_protocol import limits
from feedmill_protocol.errors import UsageError

from .endpoints import check_bind, http_address
from .inflate import INFLATED_BYTES

__all__ = ["PRESETS", "SAMPLE_TIMEOUT", "ServerConfig", "StreamConfig", "parse_size"]

PRESETS: Final = {
    "imagenet-train": "feedmill_server.imagenet:train",
    "imagenet-eval": "feedmill_server.imagenet:evaluate",
}
"""The pipelines that come with feedmill, by the names that ``--preset`` knows."""

SAMPLE_TIMEOUT: Final = 30.0
"""A hundred times what the slowest picture takes. A sample that hangs has two tries, one after the other, and trainers
should be told its name within the 60 s (feedmill.connect's timeout) that they wait for any progress."""

_WORKER_MEMORY: Final = 64 * 1024 * 1024
"""Less is no limit but a mistake: an image of 20 megapixels is as large."""

_INSTEAD: Final = {"preset": "pipeline", "pipeline": "preset", "shards": "dir", "dir": "shards"}
"""Who says the one, on the command line say, does not mean the other, from a file say."""

_LONGEST: Final = 86_400
"""Seconds: a day. Who means "for ever" should say how long that is."""

_ALIKE: Final = 0.8
"""difflib's ratio. All names begin alike, so that its own 0.6 would find a neighbour for any."""

_log = logging.getLogger(__name__)

_SIZE: Final = re.compile(r"\s*(\d{1,18}(?:\.\d+)?)\s*(?:([KMGT])(i?)B?|B)?\s*", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """One stream: its ``shards`` or a ``dir``, and a ``pipeline`` or a ``preset``."""

    shards: tuple[str, ...] = ()
    dir: str = ""
    """A folder of pictures, DIR/CLASS/picture.jpg; see `feedmill_server.tree`."""
    pipeline: str = ""
    """FILE.py:NAME or module:NAME, or the FILE.json of baked shards."""
    preset: str = ""
    batch_size: int | None = None
    exact: bool = False
    """Run all transforms as written; see `feedmill_server.fusion`."""
    repeated: bool = False
    """A shard that is given twice comes twice. Else that is an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """A server: where it listens, what it may use, and its streams by name."""

    bind: str = "tcp://127.0.0.1:7880"
    workers: int = 0
    """0: as many as there are cores for this process."""
    memory: int = 1024**3
    """Bytes of shared memory for batches that are built, sent and cached."""
    cache: str = ""
    """Folder for indexes and inflated shards; empty for one beside the shards, or the user's cache."""
    cache_bytes: int = INFLATED_BYTES
    """Bytes of disk for inflated shards."""
    name: str = ""
    """What clients know this server by; empty for the host's name."""
    jpeg: str = ""
    """The JPEG decoder: turbo, simplejpeg or pillow; empty for the fastest that is there."""
    sample_timeout: float = SAMPLE_TIMEOUT
    """Seconds that a worker may take for a sample, before it is taken to hang and is ended."""
    worker_memory: int | None = None
    """Bytes that a worker may take beyond what it is born with; None: what there is."""
    keys: str = ""
    """Folder with the server's keys (server.key_secret); empty to let everybody connect, unencrypted."""
    authorized_clients: str = ""
    """Folder with the public keys (*.key) of those who may connect; empty for the folder of ``keys``."""
    insecure: bool = False
    """Listen beyond this machine though anybody may connect."""
    http: str = ""
    """Where the page and the metrics are, ADDRESS:PORT or a port of this machine; empty for nowhere."""
    streams: Mapping[str, StreamConfig] = field(default_factory=dict)

    @classmethod
    def merge(cls, options: Mapping[str, Any], stream: Mapping[str, Any], environ: Mapping[str, str]) -> Self:
        """Merge all sources. ``options`` and ``stream`` are from the command line, None where nothing was said.

        ``options`` may have ``config``, a TOML file; ``stream`` has ``name`` and what belongs to that stream. Raises
        UsageError.
        """
        _warn_of_unknown(environ)
        path = options.get("config") or environ.get("FEEDMILL_CONFIG")
        values = _read(Path(path)) if path else {}
        streams: dict[str, dict[str, Any]] = values.pop("streams", {})
        named = {k: v for k, v in stream.items() if v is not None}
        said_here = frozenset(named)
        name = named.pop("name", None) or environ.get("FEEDMILL_STREAM") or "train"
        for key in _keys(StreamConfig):
            said = environ.get(f"FEEDMILL_{key.upper()}")
            if said and not said_here & {key, _INSTEAD.get(key)}:
                named[key] = said.split() if key == "shards" else said
        if named:
            lower = {k: v for k, v in streams.get(name, {}).items() if _INSTEAD.get(k) not in named}
            streams[name] = lower | named
        for key in _keys(cls) - {"streams"}:
            if (said := environ.get(f"FEEDMILL_{key.upper()}")) is not None:
                values[key] = said
            if options.get(key) is not None:
                values[key] = options[key]
        settings: dict[str, Any] = {key: _server_value(key, value) for key, value in values.items()}
        return cls(
            **settings,
            streams={name: _stream(name, given) for name, given in streams.items()},
        ).checked()

    def checked(self) -> Self:
        """Return this configuration with what depends on the machine filled in. Raises UsageError."""
        if not self.streams:
            raise UsageError(
                "nothing to serve: give SHARDS or --dir, and --preset or --pipeline, or --config FILE.toml"
            )
        if self.authorized_clients and not self.keys:
            raise UsageError(
                f"authorized_clients={self.authorized_clients!r}: without keys there is no telling who comes; "
                "give the folder of the server's keys, too (--keys)"
            )
        check_bind(self.bind, insecure=self.insecure or bool(self.keys))
        if self.http:
            http_address(self.http, insecure=self.insecure)
        if not self.name.isprintable():
            raise UsageError(f"name={self.name!r}: a name is printable text")
        if len(self.name.encode()) > limits.NAME_BYTES:
            raise UsageError(f"name={self.name!r}: a name has at most {limits.NAME_BYTES} bytes")
        workers = self.workers or len(os.sched_getaffinity(0))
        return replace(self, workers=workers, name=self.name or socket.gethostname()[: limits.NAME_BYTES // 2])


def _warn_of_unknown(environ: Mapping[str, str]) -> None:
    """Log what looks like one of our variables and is none: no error, since others may set it, as Kubernetes does."""
    known = {f"FEEDMILL_{key.upper()}" for key in _keys(ServerConfig) | _keys(StreamConfig) | {"config", "stream"}}
    known.remove("FEEDMILL_STREAMS")  # in a file only
    for name in sorted(environ):
        if name.startswith("FEEDMILL_") and name not in known:
            nearest = difflib.get_close_matches(name, known, 1, _ALIKE)
            _log.warning("%s in the environment has no meaning%s", name, f"; is it {nearest[0]}?" if nearest else "")


def _keys(cls: type[Any]) -> set[str]:
    return {f.name for f in fields(cls)}


def _read(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"configuration {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # ValueError: no TOML, no UTF-8, or an integer of 5,000 digits
        raise UsageError(f"configuration {path}: not TOML: {error}") from None
    _known(values, _keys(ServerConfig), f"configuration {path}")
    streams = values.get("streams", {})
    if not isinstance(streams, dict):
        raise UsageError(f"configuration {path}: streams must be tables, like [streams.train]")
    for name, stream in streams.items():
        if not isinstance(stream, dict):
            raise UsageError(f"configuration {path}: streams.{name} must be a table")
        _known(stream, _keys(StreamConfig), f"configuration {path}, [streams.{name}]")
        _resolve(stream, path)
    folders = [key for key in ("cache", "keys", "authorized_clients") if values.get(key)]
    return values | {key: _beside(path, values[key]) for key in folders}


def _resolve(stream: dict[str, Any], path: Path) -> None:
    """Have the paths of a stream be relative to the file at ``path``, so that it means the same from everywhere."""
    if isinstance(stream.get("shards"), str):
        stream["shards"] = [stream["shards"]]
    if isinstance(shards := stream.get("shards"), list):
        stream["shards"] = [_beside(path, shard) for shard in shards]
    if stream.get("dir"):
        stream["dir"] = _beside(path, stream["dir"])
    if isinstance(pipeline := stream.get("pipeline"), str) and (".py:" in pipeline or pipeline.endswith(".json")):
        stream["pipeline"] = _beside(path, pipeline)


def _beside(path: Path, given: Any) -> Any:
    """Return where a path leads that stands in the file at ``path``; anything else is complained about later."""
    # os.path's, as in listing.py: Path's raises without a home
    return str(path.parent / os.path.expanduser(given)) if isinstance(given, str) else given  # noqa: PTH111


def _known(values: Mapping[str, Any], keys: set[str], where: str) -> None:
    for key in values:
        if key not in keys:
            raise UsageError(f"{where}: there is no option {key!r}; options are {', '.join(sorted(keys))}")


def _server_value(key: str, value: Any) -> Any:
    if key in {"memory", "cache_bytes"}:
        return parse_size(key, value)
    if key == "worker_memory":
        if (size := parse_size(key, value)) < _WORKER_MEMORY:
            raise UsageError(
                f"worker_memory={value!r}: expected {_WORKER_MEMORY // 2**20}MiB or more; leave it out for no limit"
            )
        return size
    if key == "sample_timeout":
        return _seconds(key, value)
    if key == "workers":
        return _integer(key, value, 0, 4096)
    if key == "insecure":
        return _boolean(key, value)
    if key == "http" and type(value) is int:  # a port, as TOML has it
        value = _shown(value)
    return _string(key, value)


def _stream(name: str, given: Mapping[str, Any]) -> StreamConfig:
    if not name.isprintable():  # nor can it be sent, if it came from the environment and is no UTF-8
        raise UsageError(f"stream {name!r}: a name is printable text")
    if not name or len(name.encode()) > limits.NAME_BYTES:
        raise UsageError(f"stream {name!r}: a name has 1 to {limits.NAME_BYTES} bytes")
    shards = given.get("shards") or ()
    if not isinstance(shards, (list, tuple)) or not all(isinstance(s, str) for s in shards):
        raise UsageError(f"stream {name}: shards must be a list of strings")
    size = given.get("batch_size")
    stream = StreamConfig(
        shards=tuple(shards),
        dir=_string("dir", given.get("dir", "")),
        pipeline=_string("pipeline", given.get("pipeline", "")),
        preset=_string("preset", given.get("preset", "")),
        exact=_boolean("exact", given.get("exact", False)),
        repeated=_boolean("repeated", given.get("repeated", False)),
        batch_size=None if size is None else _integer("batch_size", size, 1, limits.BATCH_SAMPLES),
    )
    if not (stream.shards or stream.dir):
        raise UsageError(f"stream {name} has no shards; give SHARDS, or a folder of pictures with --dir")
    if stream.shards and stream.dir:
        raise UsageError(f"stream {name} has shards and a dir={stream.dir!r}; give one of them, or two streams")
    if stream.preset and stream.preset not in PRESETS:
        raise UsageError(f"stream {name}: there is no preset {stream.preset!r}; presets are {', '.join(PRESETS)}")
    if bool(stream.pipeline) == bool(stream.preset):
        raise UsageError(f"stream {name} needs either a pipeline (FILE.py:NAME) or a preset, and not both")
    return stream


def _string(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{key}={_shown(value)}: expected a string")
    return value


def _integer(key: str, value: Any, low: int, high: int) -> int:
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if type(number) is not int or not low <= number <= high:
        raise UsageError(f"{key}={_shown(value)}: expected an integer in {low}..{high}")
    return number


def _seconds(key: str, value: Any) -> float:
    try:
        number = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else 0.0
    except ValueError:
        number = 0.0
    if not 0 < number <= _LONGEST:
        raise UsageError(f"{key}={value!r}: expected a number of seconds, more than 0 and at most {_LONGEST:,}")
    return number


def _boolean(key: str, value: Any) -> bool:
    if isinstance(value, str) and value.lower() in {"1", "true", "yes", "0", "false", "no", ""}:
        return value.lower() in {"1", "true", "yes"}
    if not isinstance(value, bool):
        raise UsageError(f"{key}={_shown(value)}: expected true or false")
    return value


def parse_size(key: str, value: Any) -> int:
    """Return the bytes that a value like 512MiB, "2GB" or 1000 means. Raises UsageError, which names ``key``."""
    match = _SIZE.fullmatch(value if isinstance(value, str) else _shown(value))
    if match is None:
        raise UsageError(f"{key}={_shown(value)}: expected a size like 512MiB or 2GB")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " KMGT".index((match[2] or " ").upper()))


def _shown(value: object) -> str:
    """Return a value for an error. TOML may hold integers of more digits than Python writes out."""
    try:
        return repr(value)
    except ValueError:
        return "an integer of thousands of digits"
