"""A server for the one trainer that started it (`feedmill.private`), and that it does not outlive.

All it has from the trainer are descriptors: its *lifeline*, a channel on which it says ``begun``, then ``ready`` or
``failed``; the trainer's pidfd; and memory files with what to serve. The rule of this file: it ends as soon as the
lifeline is shut or the trainer is no more, whatever it is doing. It takes both: a trainer that lives may be done with
its server, and forks of one that was killed hold the lifeline open.

Its socket has no name: ``ready`` brings a descriptor of it, and its folder is removed before. So only the trainer and
its children can connect, and nothing is left on the disk, whoever is killed.
"""

import ctypes
import logging
import os
import re
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, NoReturn

import msgpack

from feedmill_protocol.errors import FeedmillError, UsageError
from feedmill_protocol.messages import shorten

from .channel import Channel, ChannelClosed
from .config import PRESETS, ServerConfig
from .hosting import hosted
from .progress import shown
from .server import Server

__all__ = ["main"]

_PR_SET_CHILD_SUBREAPER: Final = 36  # <sys/prctl.h>

_GRACE: Final = 1.0
"""Seconds for ending in order, after which the kernel does it."""

_TEXT_BYTES: Final = 16 * 1024
"""What an error may say: far below what a channel takes, and more than anybody reads."""

_OPTION: Final = re.compile(r"(?<![\w-])--([a-z]+(?:-[a-z]+)*)")


def main(lifeline: Channel, trainer: int, order: int, pipeline: int | None) -> int:
    """Serve what is in the memory file ``order`` until the trainer is done; return the exit code.

    ``trainer`` is its pidfd; ``pipeline``, where it is an object, a memory file with that.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which may know what to do with it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # for workers, whose parent is killed: see the end
    threading.Thread(target=_end_with, args=(lifeline, trainer), name="lifeline", daemon=True).start()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="feedmill's server: %(message)s")
    try:
        return _serve(lifeline, order, pipeline)
    finally:  # in a container the trainer may be the init process, which leaves orphans unburied
        with suppress(ChildProcessError):
            while True:
                os.wait()


def _serve(lifeline: Channel, order: int, pipeline: int | None) -> int:
    with suppress(ChannelClosed):
        try:
            lifeline.send("begun")
            config, caching = _config(order, handed=pipeline is not None)
            with shown("indexing") as progress, hosted(config, progress, pipeline, caching=caching) as server:
                server.prepare()
                _bind(server, lifeline)
                server.run()
        except FeedmillError as error:
            lifeline.send("failed", type(error).__name__, [_said_here(str(argument)) for argument in error.args])
            return 1
    return 0


def _end_with(lifeline: Channel, trainer: int) -> NoReturn:
    """Wait until nobody needs this process any more, and end it."""
    poll = select.poll()
    poll.register(lifeline, select.POLLIN)  # the trainer says nothing on it; it closes it
    poll.register(trainer, select.POLLIN)
    poll.poll()
    if (main_thread := threading.main_thread().ident) is not None:
        signal.pthread_kill(main_thread, signal.SIGTERM)
    time.sleep(_GRACE)
    os._exit(0)


def _config(order: int, *, handed: bool) -> tuple[ServerConfig, bool]:
    """Return the configuration that the trainer asks for, and whether batches that it has had are kept for it.

    The environment has no say: the call says it all.
    """
    with os.fdopen(order, "rb") as file:
        file.seek(0)
        given: dict[str, Any] = msgpack.unpackb(file.read())
    stream, pipeline = given.pop("stream"), given.pop("pipeline", "")
    if handed:
        pipeline = "the trainer's"
    elif pipeline not in PRESETS and ":" not in pipeline and not pipeline.endswith(".json"):
        presets = ", ".join(PRESETS)
        raise UsageError(
            f"pipeline={pipeline!r}: expected a Pipeline, FILE.py:NAME, module:NAME or a preset; presets are {presets}"
        )
    stream["preset" if pipeline in PRESETS else "pipeline"] = pipeline
    return ServerConfig.merge(given, stream, {}), "memory" in given


def _said_here(text: str) -> str:
    """Return what an error says, with the options of a command line as the arguments that they are here."""
    return shorten(_OPTION.sub(lambda option: option[1].replace("-", "_") + "=", text), _TEXT_BYTES)


def _bind(server: Server, lifeline: Channel) -> None:
    """Listen on a socket without a name, and send the trainer a descriptor of it."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="feedmill-"))  # 0700
        stack.callback(folder.rmdir)
        within = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        stack.callback(os.close, within)
        path = f"/proc/self/fd/{within}/socket"  # a socket's path has at most 107 bytes, and TMPDIR may be long
        server.bind(f"ipc://{path}")
        stack.callback(os.unlink, path)
        end = os.open(path, os.O_PATH)
        stack.callback(os.close, end)
        lifeline.send("ready", fds=[end])


if __name__ == "__main__":
    descriptors = [int(text) for text in sys.argv[1:]]
    channel = Channel(socket.socket(fileno=descriptors[0]))
    code = main(channel, descriptors[1], descriptors[2], descriptors[3] if len(descriptors) > 3 else None)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Python, while it ends, would show a SystemExit
    sys.exit(code)
