"""An ImageFolder tree: pictures in folders, one folder for each class, with torchvision's numbers.

The rule of this file: whoever has the same files numbers classes and pictures alike, wherever they lie. What is hidden
(a name that begins with a dot) is neither class nor picture.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, Self

import msgpack
import numpy as np
from numpy.typing import NDArray

from feedmill_protocol.errors import UsageError

from .decode import is_image

__all__ = ["Tree", "unique_keys"]

THREADS: Final = 8
"""Folders that are listed at the same time: a network disk takes its time for each file."""

REMEDY: Final = "expected pictures like DIR/CLASS/picture.jpg"


class _Picture(NamedTuple):
    path: str  # below the root
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Tree:
    """The n pictures below ``root``, sorted by class and path.

    ``classes`` are their names, sorted; a label is a position in there. Picture i has ``labels[i]`` (int32 [n]), and
    had ``sizes[i]`` bytes and the modification time ``mtimes[i]`` in ns (int64 [n]) when it was listed. ``passed_over``
    counts the files that are no pictures by their extension.
    """

    root: str
    classes: tuple[str, ...]
    names: bytes
    """Paths below the root, each with a NUL behind it: a million strings would take more memory than all the rest."""
    labels: NDArray[np.int32]
    sizes: NDArray[np.int64]
    mtimes: NDArray[np.int64]
    passed_over: int
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sizes)

    def __repr__(self) -> str:
        return f"<Tree {self.root}: {len(self):,} pictures of {len(self.classes):,} classes>"

    @classmethod
    def scan(cls, root: str, progress: Callable[[int, int], None] | None = None) -> Self:
        """List the pictures below ``root``, calling ``progress(done, total)`` after each class.

        Raises UsageError for a folder that cannot be read, and where there are no classes, or one has no picture.
        """
        root = os.path.expanduser(root)  # noqa: PTH111 # as in listing.py: Path's raises without a home
        classes = sorted(entry.name for entry in _visible(root) if entry.is_dir())
        if not classes:
            raise UsageError(f"{root} has no folders, which would be classes; {REMEDY}")
        pictures: list[_Picture] = []
        labels: list[int] = []
        others = 0
        with ThreadPoolExecutor(THREADS) as pool:
            for label, (found, passed_over) in enumerate(pool.map(partial(_list, root), classes)):
                if not found:
                    raise UsageError(f"{root}/{classes[label]} has no picture; {REMEDY}, or remove the folder")
                pictures += found
                labels += [label] * len(found)
                others += passed_over
                if progress:
                    progress(label + 1, len(classes))
        blob = b"".join(os.fsencode(picture.path) + b"\0" for picture in pictures)
        return cls._of(
            root,
            tuple(classes),
            blob,
            np.array(labels, np.int32),
            np.array([picture.size for picture in pictures], np.int64),
            np.array([picture.mtime_ns for picture in pictures], np.int64),
            others,
        )

    @classmethod
    def _of(
        cls,
        root: str,
        classes: tuple[str, ...],
        names: bytes,
        labels: NDArray[np.int32],
        sizes: NDArray[np.int64],
        mtimes: NDArray[np.int64],
        passed_over: int,
    ) -> Self:
        ends = np.flatnonzero(np.frombuffer(names, np.uint8) == 0)
        starts = np.concatenate(([0], ends + 1), dtype=np.int64)
        return cls(root, classes, names, labels, sizes, mtimes, passed_over, starts)

    def name(self, i: int) -> bytes:
        """Return the path of picture ``i`` below the root, as the file system has it."""
        return self.names[self.starts[i] : self.starts[i + 1] - 1]

    def key(self, i: int) -> str:
        """Return what picture ``i`` is called as a sample: its path without the extension.

        Other dots become underscores, since a key ends at the first dot of a file's name.
        """
        folder, slash, base = self.name(i).decode(errors="backslashreplace").rpartition("/")
        stem = base.rpartition(".")[0].replace(".", "_")
        if stem.startswith("__"):  # which WebDataset's readers pass over
            stem = stem.lstrip("_") or "_"
        return folder + slash + stem

    def extension(self, i: int) -> str:
        """Return the extension of picture ``i`` as the file has it, without the dot."""
        return self.name(i).rpartition(b".")[2].decode()

    def read(self, i: int) -> bytes:
        """Return the bytes of picture ``i``. Raises OSError, or ValueError if the file has changed since it was listed.

        Both name the file.
        """
        path = f"{self.root}/{os.fsdecode(self.name(i))}"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a named pipe would block
            try:
                size = int(self.sizes[i])
                data = os.pread(descriptor, size, 0)
                while len(data) < size and (more := os.pread(descriptor, size - len(data), len(data))):
                    data += more
                status = os.fstat(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            error.filename = path
            raise
        if (len(data), status.st_size, status.st_mtime_ns) != (size, size, self.mtimes[i]):
            raise ValueError(f"changed since it was listed, start again: {path}")  # a report may have 96 bytes
        return data

    def digest(self) -> str:
        """Return what tells this tree from any other: equal for equal paths and sizes, wherever it lies."""
        return hashlib.sha256(self.names + self.sizes.astype("<i8").tobytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Pack the tree for `from_bytes`, in another process of this machine."""
        arrays = [array.tobytes() for array in (self.labels, self.sizes, self.mtimes)]
        root, classes = os.fsencode(self.root), [os.fsencode(name) for name in self.classes]
        packed: bytes = msgpack.packb([root, classes, self.names, *arrays, self.passed_over])
        return packed

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Unpack what `to_bytes` packed."""
        root, classes, names, labels, sizes, mtimes, passed_over = msgpack.unpackb(data)
        return cls._of(
            os.fsdecode(root),
            tuple(os.fsdecode(name) for name in classes),
            names,
            np.frombuffer(labels, np.int32),
            np.frombuffer(sizes, np.int64),
            np.frombuffer(mtimes, np.int64),
            passed_over,
        )


def unique_keys(keys: Iterable[str]) -> list[str]:
    """Return the keys in order; the second and third that are alike get "-2" and "-3": a.jpg and a.png are two."""
    taken: dict[str, None] = {}
    for key in keys:
        number, name = 1, key
        while name in taken:
            number += 1
            name = f"{key}-{number}"
        taken[name] = None
    return list(taken)


def _visible(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    yield entry
    except OSError as error:
        raise UsageError(f"{folder} cannot be listed: {error.strerror}; check its path and permissions") from None


def _list(root: str, name: str) -> tuple[list[_Picture], int]:
    """Return the pictures of a class, sorted by path, and how many other files there are."""
    pictures: list[_Picture] = []
    others = 0
    folders = [(name, frozenset[tuple[int, int]]())]
    while folders:
        folder, above = folders.pop()
        inside = above | {_identity(f"{root}/{folder}")}
        if len(inside) == len(above):
            raise UsageError(f"{root}/{folder} leads back to a folder that it lies in; remove that link")
        for entry in _visible(f"{root}/{folder}"):
            path = f"{folder}/{entry.name}"
            try:
                if entry.is_dir():
                    folders.append((path, inside))
                elif "." in entry.name and is_image(entry.name.lower()) and stat.S_ISREG(entry.stat().st_mode):
                    status = entry.stat()
                    pictures.append(_Picture(path, status.st_size, status.st_mtime_ns))
                else:
                    others += 1
            except OSError as error:  # a link to nothing, or a disk that fails
                raise UsageError(f"{root}/{path} cannot be read: {error.strerror}; mend or remove it") from None
    return sorted(pictures), others


def _identity(folder: str) -> tuple[int, int]:
    try:
        status = os.stat(folder)  # noqa: PTH116 # strings throughout: there may be millions
    except OSError as error:
        raise UsageError(f"{folder} cannot be read: {error.strerror}; check its permissions") from None
    return status.st_dev, status.st_ino
