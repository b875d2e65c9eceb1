"""New shards: written one after the other under numbered names, so that whoever is interrupted can go on.

The rule of this file: a shard is there whole or not at all; its bytes follow from its samples alone; and the shards of
one pattern are of one making. How they were made is written down beside them before the first, and who means to make
them otherwise is told so.
"""

import fcntl
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

from feedmill_protocol.errors import FeedmillError, ShardError, UsageError

from .cache import replacing
from .shards import ShardStore

__all__ = ["END_BYTES", "Sample", "ShardWriter", "tar_size"]

Sample = tuple[str, Mapping[str, bytes]]
"""A key, and the content of each extension."""

BLOCK: Final = 512

END_BYTES: Final = 2 * BLOCK
"""What a shard takes beside its members."""

_NUMBER: Final = re.compile(r"%(0\d{1,2})?d")


class ShardWriter:
    """The shards that ``pattern`` names, like ``train-%06d.tar``, and train.json, which says how they are made.

    Raises UsageError for a pattern that cannot work.
    """

    def __init__(self, pattern: str) -> None:
        self._folder = Path(os.path.expanduser(pattern)).parent  # noqa: PTH111 # Path's raises without a home
        self._name = os.path.basename(pattern)  # noqa: PTH119 # a name, not yet a path
        if len(_NUMBER.findall(self._name)) != 1 or self._name.count("%") != 1 or not self._name.endswith(".tar"):
            raise UsageError(f"{pattern!r} names no shards; expected a pattern with one number, like train-%06d.tar")
        prefix = _NUMBER.sub("", self._name).removesuffix(".tar").strip("-_.")
        self.description = self._folder / f"{prefix or 'shards'}.json"

    @contextmanager
    def making(self, made: Mapping[str, Any]) -> Iterator[None]:
        """Write shards while the block runs, and nobody else does.

        ``made`` is what the description has: whatever the samples depend on, and what readers should know, as JSON.
        Raises UsageError where shards of another making lie under these names, and where the folder cannot be written.
        """
        with ExitStack() as stack:
            try:
                (hidden := self._folder / ".feedmill").mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context((hidden / f"{self.description.name}.lock").open("wb"))
                self._begin(lock, json.loads(json.dumps(made)))
            except OSError as error:
                raise self._unwritable(error) from None
            yield

    @property
    def folder(self) -> Path:
        """Where the shards are written."""
        return self._folder

    def path(self, number: int) -> Path:
        """Return where shard ``number`` is, or will be."""
        return self._folder / (self._name % number)

    def braces(self, shards: int) -> str:
        """Return the names of so many shards as ``feedmill serve`` takes them."""
        digits = _NUMBER.search(self._name)
        first, last = (digits[0] % number if digits else "" for number in (0, shards - 1))
        named = _NUMBER.sub(first if shards == 1 else f"{{{first}..{last}}}", self._name)
        return str(self._folder / named)

    def has(self, number: int) -> bool:
        """Tell whether shard ``number`` is finished."""
        return self.path(number).exists()

    def write(self, number: int, samples: Iterable[Sample]) -> None:
        """Write shard ``number``. What ``samples`` raise leaves nothing behind; no OSErrors but feedmill's."""
        path = self.path(number)
        partial = path.with_name(f".{path.name}.partial")
        try:
            with partial.open("wb") as file:
                for key, members in samples:
                    for extension, content in members.items():
                        _add(file, f"{key}.{extension}", content)
                file.write(bytes(END_BYTES))
                file.flush()
                os.fsync(file.fileno())  # or a power cut could leave a file of zeros under the name
            partial.replace(path)
        except BaseException as error:
            with suppress(OSError):
                partial.unlink()
            # ServerUnavailable, of a feed that is written, is a TimeoutError, and so an OSError: not the folder's.
            if isinstance(error, OSError) and not isinstance(error, FeedmillError):
                raise self._unwritable(error) from None
            raise

    def index(self, number: int, samples: int) -> None:
        """Store the index of shard ``number`` beside it. Raises ShardError unless it has so many samples."""
        path = self.path(number)
        found = len(ShardStore([path]).index(0))
        if found != samples:
            raise ShardError(path.name, f"has {found:,} samples, not {samples:,}; delete it, and it is made again")

    def _begin(self, lock: BinaryIO, made: Mapping[str, Any]) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{self.path(0)}: another process is writing these shards; wait for its end") from None
        try:
            before = json.loads(self.description.read_bytes())
        except FileNotFoundError:
            if self.has(0):
                raise UsageError(
                    f"{self.path(0)} exists, and {self.description}, which would say how it was made, does not; "
                    "choose another name"
                ) from None
            with replacing(self.description) as file:
                file.write(json.dumps(made, indent=1).encode() + b"\n")
            return
        except ValueError:
            before = {}
        if before != made:
            changed = [key for key in made if not isinstance(before, dict) or before.get(key) != made[key]]
            raise UsageError(
                f"{self.description} says that these shards were made from something else ({', '.join(changed)}); "
                "delete it and them, or choose another name"
            )

    def _unwritable(self, error: OSError) -> UsageError:
        return UsageError(f"{self._folder} cannot be written: {error.strerror}; make room, or choose another folder")


def tar_size(name: str, size: int) -> int:
    """Return the bytes that a member takes of a shard."""
    return len(_header(name, size)) + -(-size // BLOCK) * BLOCK


def _add(file: BinaryIO, name: str, content: bytes) -> None:
    file.write(_header(name, len(content)))
    file.write(content)
    file.write(bytes(-len(content) % BLOCK))


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)  # of nobody, at no time: equal samples make equal shards
    member.size = size
    return member.tobuf(tarfile.PAX_FORMAT)
