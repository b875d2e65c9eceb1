"""A pipeline that a trainer hands to its private server: an object, with the lambdas and closures that it is made of.

It travels as a pickle, and a pickle is a program. The rule of this file: what is unpacked here comes from the process
that started this server and runs as the same user, in a memory file that it made and that has no name; that process
could as well have run the program itself. So nothing here reads a socket, or a file that anybody names, and only
`feedmill_server.forkserver` unpacks: the broker, which clients speak to, hands the descriptor on and never looks.
"""

import hashlib
import mmap
import pickle  # noqa: TID251 # from the process that started this one

from feedmill_protocol.errors import PipelineError

from .pipeline import Pipeline

__all__ = ["unpack"]


class _Unpickler(pickle.Unpickler):
    """Sets of strings come as sorted lists, lest the digest depend on the order in which a process has them."""

    def persistent_load(self, pid: tuple[str, list[str]]) -> set[str] | frozenset[str]:
        kind, items = pid
        return set(items) if kind == "set" else frozenset(items)


def unpack(fd: int) -> tuple[Pipeline, str]:
    """Return the pipeline in a memory file, and a digest of its pickle. Raises PipelineError.

    It may be unpacked again, by the fork server that replaces this one: the file's position is left alone.
    """
    with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as packed:  # a single system call reads 2 GiB at most
        digest = hashlib.sha256(packed).hexdigest()
        try:
            pipeline = _Unpickler(packed).load()
        except Exception as error:
            raise PipelineError(
                f"the pipeline cannot be unpacked in its server: {type(error).__name__}: {error}; what it uses must be "
                "importable there, or defined in the script or notebook itself"
            ) from error
    if not isinstance(pipeline, Pipeline):
        raise PipelineError(f"the pipeline is a {type(pipeline).__name__}, not a Pipeline")
    return pipeline, digest
