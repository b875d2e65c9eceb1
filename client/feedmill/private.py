"""A private server: a child process that serves this trainer alone, over a socket without a name.

The server (`feedmill_server.private`) is given descriptors and nothing else: a *lifeline*, on which it answers; a pidfd
of this process; and memory files with what to serve. It ends when the lifeline is closed or this process is no more,
whichever comes first, so nothing here has to run for that; a forked child, which has the lifeline too, neither ends it
nor keeps it alive.

A pipeline that is an object, with its lambdas and closures, is pickled. Pickles are programs: this one goes from a
process to its own child, in a memory file that nobody else can open, and never over a socket; the child may do nothing
that this process may not. `feedmill_server.handover` is the other end.
"""

import inspect
import io
import operator
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, NoReturn, Unpack

import msgpack

from feedmill_protocol import errors
from feedmill_protocol.errors import ServerUnavailable, UsageError

from .feed import Feed, Options, connect

if TYPE_CHECKING:
    from feedmill_server import Pipeline

__all__ = ["PrivateServer", "installed", "local"]

_NEEDED: Final = ("feedmill_server", "cloudpickle", "PIL", "rich", "torchvision")

_BEGIN_SECONDS: Final = 60.0
"""Until the child says that it runs: an interpreter's start takes a second on a cold network disk."""

_END_SECONDS: Final = 2.0
"""Until the child has ended, before it is killed; it gives itself one."""

_MESSAGE_BYTES: Final = 128 * 1024
"""As much as `feedmill_server.channel` sends."""

PathLike = str | os.PathLike[str]


def local(
    pipeline: "Pipeline | str",
    shards: PathLike | Sequence[PathLike],
    *,
    workers: int | None = None,
    exact: bool = False,
    repeated: bool = False,
    memory: int | str | None = None,
    cache: PathLike | None = None,
    sample_timeout: float | None = None,
    worker_memory: int | str | None = None,
    **options: Unpack[Options],
) -> Feed:
    """Open a feed of batches that processes on this machine make, for this trainer alone.

    ``pipeline`` is a `feedmill_server.Pipeline`, of which lambdas, closures and what a script or notebook defines may
    be part; or what ``feedmill serve`` takes: ``"file.py:name"``, ``"module:name"``, a preset's name. ``shards`` are
    tar files: one or several, with braces and globs. The other ``options`` are those of `feedmill.connect`, and the
    batches those that it gets from ``feedmill serve``.

    ``workers`` are processes, one for each core if None or 0. ``exact`` runs the pipeline as written. A shard that is
    given twice is an error unless ``repeated`` says that it should come twice. ``memory`` is for batches that are built
    and sent, and, if it is given, for keeping them in case an epoch is iterated over again: bytes, or a size like
    ``"8GiB"`` (otherwise 1 GiB at most, and none are kept). ``cache`` is a folder for indexes and inflated shards (one
    beside the shards). A worker that takes longer than ``sample_timeout`` seconds (30) for a sample, or more than
    ``worker_memory`` bytes of its own (no limit), is ended, and the sample is bad.

    Waits until the shards are indexed. The server ends with the feed or the trainer, whatever way that ends. Raises
    UsageError for arguments, or without ``feedmill[server]``; ShardError and PipelineError for what cannot be served;
    ServerUnavailable when the server has ended, here and later; and what `feedmill.connect` raises.
    """
    if "keys" in options:
        raise UsageError("keys: nobody else reaches a private server; leave them out")
    inspect.signature(connect).bind("", None, **options)  # a TypeError before anything is started
    given = {
        "workers": workers,
        "memory": memory,
        "cache": cache,
        "sample_timeout": sample_timeout,
        "worker_memory": worker_memory,
        "pipeline": pipeline if isinstance(pipeline, str) else None,
        "stream": {
            "shards": [shards] if isinstance(shards, (str, os.PathLike)) else shards,
            "exact": exact,
            "repeated": repeated,
            "batch_size": options.get("batch_size"),
        },
    }
    from . import ranks, tensors  # noqa: PLC0415 # torch takes seconds to import; the command line does without

    alone = options.get("rank") is not None and options.get("world_size") is not None
    # Each rank has a server of its own. They connect, and compare, when all have one.
    with ranks.Agreement(None if alone else ranks.world()) as agreement:
        agreement.device = tensors.device_of(options.get("device", "cpu"))
        server = PrivateServer(_order(given), None if isinstance(pipeline, str) else _packed(pipeline))
        try:
            agreement.reach({})
            feed = connect(server.url, **options)
        except BaseException:
            server.close()
            raise
    feed.own(server)
    return feed


class PrivateServer:
    """A server that has begun to serve, at ``url``.

    ``order`` says what to serve, in msgpack; ``pipeline`` is a pickled one, if it is an object. Raises FeedmillError if
    it cannot be served.
    """

    def __init__(self, order: bytes, pipeline: bytes | None) -> None:
        _require_server()
        self._pid = os.getpid()
        self._lifeline, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ExitStack() as stack:
            stack.enter_context(end)
            given = [end.fileno(), os.pidfd_open(self._pid)]
            stack.callback(os.close, given[1])
            for content in (order, *([] if pipeline is None else [pipeline])):
                file = stack.enter_context(os.fdopen(os.memfd_create("feedmill-order"), "wb"))
                file.write(content)  # buffered: a single system call writes 2 GiB at most
                file.flush()
                given.append(file.fileno())
            try:
                self._process = _start(given)
            except BaseException:
                self._lifeline.close()
                raise
        self._socket: int | None = None
        try:
            self._receive(_BEGIN_SECONDS)  # "begun"
            # Its next steps have deadlines of their own, but for reading the shards: nobody knows how long that takes.
            [self._socket] = self._receive(None)  # "ready"
        except BaseException:
            self.close()
            raise
        self.url = f"ipc:///proc/self/fd/{self._socket}"

    def check(self) -> None:
        """Raise the error with which the server has ended, if it has. Works in forked children too."""
        try:
            data = self._lifeline.recv(_MESSAGE_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._raise(data)

    def close(self) -> None:
        """End the server, and wait until it has ended. May be called twice; does nothing in a forked child."""
        if os.getpid() != self._pid or self._lifeline.fileno() < 0:
            return
        try:
            with suppress(OSError):  # it may have ended
                self._lifeline.shutdown(socket.SHUT_RDWR)  # what forked children have of it, too
            self._lifeline.close()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)
        finally:  # also where Ctrl-C breaks the wait
            self._process.kill()
            self._process.wait()
            if self._socket is not None:
                os.close(self._socket)

    def _receive(self, timeout: float | None) -> list[int]:
        """Wait for the next message, and return the descriptors that came with it."""
        self._lifeline.settimeout(timeout)
        try:
            data, fds, _, _ = socket.recv_fds(self._lifeline, _MESSAGE_BYTES, 1)
        except TimeoutError:
            raise ServerUnavailable(
                f"{sys.executable} has not begun to serve within {_BEGIN_SECONDS:g} s; is it a Python interpreter?"
            ) from None
        except OSError:
            data, fds = b"", []
        if not data or msgpack.unpackb(data)[0] == "failed":
            self._raise(data)
        return fds

    def _raise(self, last: bytes) -> NoReturn:
        """Raise the error that was the server's last message; or say how it ended, if it had no time for one."""
        if last:
            _, name, arguments = msgpack.unpackb(last)
            raise getattr(errors, name)(*arguments)
        how = "has ended"
        if os.getpid() == self._pid:
            with suppress(subprocess.TimeoutExpired):
                code = self._process.wait(_END_SECONDS)
                how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise ServerUnavailable(f"the private server {how}; if it had something to say, that is above, on stderr")


def _require_server() -> None:
    """Raise UsageError unless what the child imports is installed, and there is an interpreter to start it with."""
    missing = [name for name in _NEEDED if not installed(name)]
    if missing:
        raise UsageError(f"feedmill.local needs {', '.join(missing)}; pip install 'feedmill[server]'")
    if not sys.executable:
        raise UsageError(
            "feedmill.local starts processes of this Python, which is embedded in a program and has no executable; "
            "start 'feedmill serve' and use feedmill.connect"
        )


def installed(name: str) -> bool:
    """Tell whether there is such a module, without importing it."""
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _order(given: Mapping[str, Any]) -> bytes:
    """Pack what the server is to do. It says what is wrong with a value, if that can be sent at all."""
    said = {key: value for key, value in given.items() if value is not None}
    for key, value in said.items():
        try:
            msgpack.packb(value, default=_plain)
        except (TypeError, ValueError, OverflowError):
            raise UsageError(f"{key}={value!r}: expected text, a path or a number, or of shards a list") from None
    return bytes(msgpack.packb(said, default=_plain))


def _plain(value: object) -> str | int:
    """Return what msgpack knows for paths, and for integers of NumPy's. Raises TypeError for anything else."""
    return os.fsdecode(value) if isinstance(value, os.PathLike) else operator.index(value)  # type: ignore[arg-type]


def _packed(pipeline: "Pipeline") -> bytes:
    """Pickle a pipeline, and all of it that cannot be imported elsewhere."""
    _require_server()
    import cloudpickle  # noqa: PLC0415, TID251 # of the server extra; for our own child

    from feedmill_server import Pipeline  # noqa: PLC0415

    if not isinstance(pipeline, Pipeline):
        raise UsageError(f"pipeline={pipeline!r}: expected a feedmill_server.Pipeline, or the name of one")

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc] # cloudpickle has no types
        def persistent_id(self, thing: Any) -> tuple[str, list[str]] | None:
            # Strings lie in a set in another order in every process, and all ranks must mean the same pipeline.
            if type(thing) in {set, frozenset} and all(type(item) is str for item in thing):
                return type(thing).__name__, sorted(thing)
            return None

    packed = io.BytesIO()
    try:
        Pickler(packed).dump(pipeline)
    except Exception as error:  # whatever an object has to say that cannot be pickled
        raise UsageError(
            f"the pipeline cannot be sent to worker processes ({type(error).__name__}: {error}); open files, locks and "
            "connections where they are used, in the transform"
        ) from error
    return packed.getvalue()


def _start(descriptors: Sequence[int]) -> "subprocess.Popen[bytes]":
    # What can be imported here can be imported there. Without the safe path, -m would put the current folder first.
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path),
        "PYTHONSAFEPATH": "1",
    }
    command = [sys.executable, "-m", "feedmill_server.private", *map(str, descriptors)]
    try:
        return subprocess.Popen(  # noqa: S603 # our own interpreter and module
            command,
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=2,  # what a pipeline prints is no output of the trainer's
            env=environment,
            process_group=0,  # a terminal's Ctrl-C is for the trainer, which ends the server when it ends
        )
    except OSError as error:
        raise UsageError(
            f"cannot start {sys.executable}: {error.strerror}; feedmill.local needs a Python interpreter that it can "
            "start, or start 'feedmill serve' and use feedmill.connect"
        ) from error
