"""The fork server: imports torch and the pipelines once, then forks workers.

A fork takes milliseconds where a new interpreter takes seconds to import torch, and forked workers share the memory
of all that was imported. This process stays single-threaded and touches neither shards nor tensors.

It dies with the broker, and the workers die with it: the kernel sees to that, whatever way the broker ends.

Conversation: the broker sends ``load`` (pipelines, or the descriptor of one), which ``loaded`` or ``unfit`` answers;
then ``open`` (shards), with the message itself in a memory file, since it has every path; then ``fork``, with a
worker's end of a channel and its watch, and ``signal``, which a worker is sent, as often as it likes. It is told of
every worker that ``exited``.
"""

import ctypes
import gc
import os
import platform
import re
import resource
import select
import signal
import socket
import sys
import traceback
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final, NoReturn

import msgpack
import numpy as np
import PIL
import torch
import torchvision

from feedmill_protocol.errors import FeedmillError

from . import baked
from .channel import Channel, ChannelClosed
from .descriptions import PipelineFacts, StoreFacts
from .folders import FolderStore
from .handover import unpack
from .jpeg import Backend, choose
from .pipeline import Pipeline, load
from .shards import ShardStore, Stamp
from .stores import Store
from .tree import Tree
from .watch import Watch
from .worker import Exhausted, Mill, work

_PR_SET_PDEATHSIG: Final = 1  # <sys/prctl.h>


def main(control: Channel, broker: int) -> None:
    """Serve the broker's end of a channel until it closes."""
    _die_with(broker)
    for number in (signal.SIGINT, signal.SIGTERM):  # the broker alone decides when the workers go
        signal.signal(number, signal.SIG_IGN)
    try:
        (_, references, jpeg), handed = control.receive()
        try:
            backend = choose(jpeg)
            loaded = [_load(reference, exact, backend, handed) for reference, exact in references]
        except FeedmillError as error:
            control.send("unfit", str(error))
            return
        control.send("loaded", [facts for _, facts in loaded], _versions())
        (_, memory), (stores,) = control.receive()
        mills = [Mill(pipeline, _open(store)) for (pipeline, _), store in zip(loaded, _read(stores), strict=True)]
        gc.collect()
        gc.freeze()  # what was imported stays shared: no collection touches it in a worker
        _serve(control, mills, memory)
    except ChannelClosed:
        return


def _load(
    reference: str,
    exact: bool,  # noqa: FBT001
    backend: Backend,
    handed: Sequence[int],
) -> tuple[Pipeline, PipelineFacts]:
    """Load a pipeline, or unpack one that was handed over; return it, fused, and what the broker should know of it."""
    pipeline, source = unpack(handed[0]) if handed else _named(reference)
    pipeline, fusion = pipeline.fused(backend, exact=exact)
    fields = [(field.name, field.extensions) for field in pipeline.fields if not pipeline.stages]
    return pipeline, PipelineFacts(fields, pipeline.batch_size, source, fusion)


def _named(reference: str) -> tuple[Pipeline, str]:
    return baked.load(reference) if reference.endswith(".json") else load(reference)


def _read(fd: int) -> list[StoreFacts]:
    with os.fdopen(fd, "rb") as file:
        file.seek(0)
        return [StoreFacts(*facts) for facts in msgpack.unpackb(file.read())]


def _open(store: StoreFacts) -> Store:
    """Return the store that the broker describes, with shards or pictures in the state in which the broker saw them."""
    if store.tree:
        return FolderStore(Tree.from_bytes(store.tree), open_shards=store.open_shards)
    return ShardStore(
        [Path(os.fsdecode(path)) for path in store.paths],
        cache=Path(store.cache) if store.cache else None,
        inflated_bytes=store.inflated_bytes,
        open_shards=store.open_shards,
        stamps=[stamp and Stamp(*stamp) for stamp in store.stamps],
    )


def _versions() -> str:
    """Name what pixels depend on: libraries, this package, Python for the streams of `random`, and torch's kernels.

    Those for AVX2 and AVX-512 resize alike, to the bit; those without either do not.
    """
    parts = {"torch": torch, "torchvision": torchvision, "pillow": PIL, "numpy": np}
    ours = {"feedmill": version("feedmill"), "python": "{}.{}".format(*sys.version_info)}
    kernels = torch.backends.cpu.get_cpu_capability()
    ours["cpu"] = f"{platform.machine()} {'AVX2' if kernels == 'AVX512' else kernels}"
    return ", ".join(f"{name} {v}" for name, v in ({n: m.__version__ for n, m in parts.items()} | ours).items())


def _serve(control: Channel, mills: Sequence[Mill], memory: int | None) -> None:
    children: dict[int, tuple[int, int]] = {}  # pidfd → pid and the broker's number of the worker
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd in children:
                pid, number = children.pop(fd)
                poll.unregister(fd)
                os.close(fd)
                _, status = os.waitpid(pid, 0)
                control.send("exited", number, os.waitstatus_to_exitcode(status))
                continue
            (kind, number, *signum), ends = control.receive()
            if kind == "signal":
                for pidfd, (_, other) in children.items():
                    if other == number:
                        signal.pidfd_send_signal(pidfd, *signum)
                continue
            try:
                pid = _fork(control, children, ends, mills, memory)
            except OSError:  # too many processes or too little memory, which may pass
                traceback.print_exc()
                control.send("exited", number, 1)
            else:
                pidfd = os.pidfd_open(pid)
                children[pidfd] = pid, number
                poll.register(pidfd, select.POLLIN)
            for end in ends:
                os.close(end)


def _fork(
    control: Channel, siblings: Iterable[int], ends: Sequence[int], mills: Sequence[Mill], memory: int | None
) -> int:
    """Fork a worker with its ends of a channel and a watch, and without what is ours; return its pid.

    Raises OSError.
    """
    parent = os.getpid()
    if not (pid := os.fork()):
        control.close()
        for sibling in siblings:
            os.close(sibling)
        channel, watch = ends
        _be_worker(channel, watch, mills, memory, parent)
    return pid


def _be_worker(end: int, watch_end: int, mills: Sequence[Mill], memory: int | None, parent: int) -> NoReturn:
    code = 1
    try:
        _die_with(parent)
        watch = Watch(watch_end)
        watch.listen(watch_end)
        if memory is not None:
            _limit_memory(memory)
        try:
            work(Channel(socket.socket(fileno=end)), mills, watch)
            code = 0
        except Exhausted as error:
            limit = f"; a worker may take {memory:,} bytes (--worker-memory)" if error.memory and memory else ""
            watch.say(f"{error}{limit}")
    except BaseException:  # noqa: BLE001 # nothing may unwind into the fork server's own frames
        traceback.print_exc()
    finally:
        os._exit(code)


def _limit_memory(memory: int) -> None:
    """Let this process take so many bytes more than it has now.

    What counts are private pages that it may write to (VmData): neither slots, which are shared, nor libraries, nor
    what allocators only reserve. All of these count for RLIMIT_AS; and RLIMIT_RSS does nothing.
    """
    status = Path("/proc/self/status").read_bytes()
    if now := re.search(rb"VmData:\s+(\d+) kB", status):
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        limit = int(now[1]) * 1024 + memory
        limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


if __name__ == "__main__":
    main(Channel(socket.socket(fileno=int(sys.argv[1]))), int(sys.argv[2]))
