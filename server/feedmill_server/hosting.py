"""A process that is a server: its limits, its place with the scheduler, and libzmq's context around `Server`."""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import zmq

from feedmill_protocol.errors import UsageError

from .config import ServerConfig
from .server import Server, descriptors

__all__ = ["hosted"]


@contextmanager
def hosted(
    config: ServerConfig,
    progress: Callable[[str, int, int], None],
    handed: int | None = None,
    *,
    caching: bool = True,
) -> Iterator[Server]:
    """Make this process a server, until the block ends; see `Server` for the arguments. Raises UsageError."""
    # Slots, shards and clients take descriptors; the usual 1024 is for programs that call select().
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most < (least := descriptors(config.workers)):
        raise UsageError(f"this process may open {most:,} files, of at least {least:,}; raise it with 'ulimit -Hn'")
    with suppress(OSError):  # not everywhere allowed, and only for speed: whoever wakes lets a worker end its turn
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    context = zmq.Context()
    try:
        with Server(config, context, progress, handed, caching=caching) as server:
            yield server
    finally:
        context.destroy(linger=0)
