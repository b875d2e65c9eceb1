"""From an ImageFolder tree to shards: which picture goes where, and the shards themselves.

The rule of this file: what a shard has is a pure function of the tree, the seed and the size of shards. So a shard
that is there is finished, and whoever goes on makes those that are missing. Pictures are copied as they are.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from feedmill_protocol.errors import SampleError, UsageError
from feedmill_protocol.hashing import Domain, hash64

from .cache import replacing
from .decode import image_size, require_size
from .tree import Tree, unique_keys
from .writing import END_BYTES, Sample, ShardWriter, tar_size

__all__ = ["Bad", "check", "cut", "order", "pack"]

Progress = Callable[[int, int], None]

THREADS: Final = 8
"""Pictures that are read at the same time when they are checked."""

_SUBMITTED: Final = 64
"""Pictures that are read ahead, and held in memory."""


class Bad(NamedTuple):
    """A picture that is none: its number in the tree, its path below the root, and the reason."""

    picture: int
    path: str
    reason: str


def check(tree: Tree, progress: Progress) -> list[Bad]:
    """Read every picture's header with Pillow; return those that it refuses, calling ``progress(done, total)``."""
    bad = []
    with ThreadPoolExecutor(THREADS) as pool:
        for first in range(0, len(tree), _SUBMITTED):
            block = range(first, min(first + _SUBMITTED, len(tree)))
            for i, read in zip(block, pool.map(partial(_read, tree), block), strict=True):
                if reason := _complaint(read):
                    bad.append(Bad(i, os.fsdecode(tree.name(i)), reason))
            progress(block.stop, len(tree))
    return bad


def order(tree: Tree, seed: int | None) -> NDArray[np.int64]:
    """Return the pictures of a tree, int64 [n], shuffled by a seed; None leaves them as they are."""
    pictures = np.arange(len(tree), dtype=np.int64)
    if seed is None:
        return pictures
    return np.argsort(hash64(Domain.PACKING, seed, pictures), kind="stable")


def cut(sizes: Sequence[int], samples: int | None, max_bytes: int | None) -> list[range]:
    """Cut samples of these sizes into shards of at most ``samples`` and ``max_bytes``, but of at least one sample."""
    shards = []
    first = total = 0
    for i, size in enumerate(sizes):
        if i > first and (i - first == samples or (max_bytes is not None and total + size > max_bytes)):
            shards.append(range(first, i))
            first, total = i, 0
        total += size
    shards.append(range(first, len(sizes)))
    return shards


def pack(
    tree: Tree,
    pattern: str,
    *,
    seed: int | None,
    samples: int | None,
    max_bytes: int | None,
    left_out: Sequence[Bad],
    progress: Progress,
) -> str:
    """Write the pictures of ``tree``, but those ``left_out``, to shards; return their names for ``feedmill serve``.

    Writes ``classes.txt`` beside them, a name for each label. ``progress(done, total)`` is called with the samples in
    finished shards. Raises UsageError for what cannot be written, SampleError for a picture that cannot be read.
    """
    made = {
        "made_by": "feedmill pack",
        "tree": tree.digest(),
        "seed": seed,
        "samples": samples,
        "bytes": max_bytes,
        "left_out": [os.fsencode(bad.path).decode(errors="backslashreplace") for bad in left_out],
    }
    writer = ShardWriter(pattern)
    _check_place(tree, writer.folder)
    gone = np.array([bad.picture for bad in left_out], np.int64)
    pictures = order(tree, seed)
    pictures = pictures[~np.isin(pictures, gone)]
    if not len(pictures):
        raise UsageError(f"{tree.root}: no picture is left to pack")
    sizes = [_tar_size(tree, i) for i in pictures.tolist()] if max_bytes is not None else range(len(pictures))
    shards = cut(sizes, samples, max_bytes and max_bytes - END_BYTES)
    classes = _classes(tree, writer.folder / "classes.txt")  # before anything is written
    with writer.making(made):
        _write(classes, writer.folder / "classes.txt")
        for number, span in enumerate(shards):
            if not writer.has(number):
                writer.write(number, _samples(tree, pictures[span.start : span.stop], writer.path(number).name))
            writer.index(number, len(span))
            progress(span.stop, len(pictures))
    return writer.braces(len(shards))


def _read(tree: Tree, i: int) -> bytes | Exception:
    try:
        return tree.read(i)
    except (OSError, ValueError) as error:
        return error


def _complaint(read: bytes | Exception) -> str:
    if isinstance(read, Exception):
        return str(read)
    try:
        require_size(*image_size(read))
    except UnidentifiedImageError:
        return "no JPEG, PNG, PPM, WEBP or BMP file"
    except Exception as error:  # noqa: BLE001 # Pillow's parsers raise anything
        return " ".join(str(error).split())
    return ""


def _samples(tree: Tree, pictures: NDArray[np.int64], shard: str) -> Iterator[Sample]:
    numbers = pictures.tolist()
    for i, key in zip(numbers, unique_keys(map(tree.key, numbers)), strict=True):
        try:
            content = tree.read(i)
        except (OSError, ValueError) as error:
            raise SampleError(shard, key, str(error)) from None
        yield key, {tree.extension(i): content, "cls": b"%d" % tree.labels[i]}


def _tar_size(tree: Tree, i: int) -> int:
    label = str(tree.labels[i])
    key = tree.key(i)
    return tar_size(f"{key}.{tree.extension(i)}", int(tree.sizes[i])) + tar_size(f"{key}.cls", len(label))


def _check_place(tree: Tree, folder: Path) -> None:
    root, target = os.path.realpath(tree.root), os.path.realpath(folder)
    if os.path.commonpath((root, target)) == root:
        raise UsageError(f"{folder} lies in the tree {tree.root} that is packed; choose a folder elsewhere")


def _classes(tree: Tree, path: Path) -> bytes:
    """Return what the list of classes has, a line for each. Raises UsageError where ``path`` has something else."""
    if odd := [name for name in tree.classes if "\n" in name or "\r" in name]:
        raise UsageError(f"the class {odd[0]!r} has a name of several lines; give its folder another")
    text = b"".join(os.fsencode(name) + b"\n" for name in tree.classes)
    try:
        there = path.read_bytes()
    except FileNotFoundError:
        return text
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; choose another folder") from None
    if there != text:
        raise UsageError(f"{path} has other classes; choose another folder for these shards")
    return text


def _write(text: bytes, path: Path) -> None:
    try:
        with replacing(path) as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}; choose another folder") from None
