"""Which files the user means: patterns with braces and globs become paths, paths become the names of shards.

The rule of this file: the order of shards is part of what the name of a batch means, so it depends on the patterns and
the file names alone; and nothing that was asked for is left out in silence.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from feedmill_protocol import braces, limits
from feedmill_protocol.errors import ShardError, UsageError

__all__ = ["expand", "names"]

MAGIC: Final = re.compile(r"[*?[]")

_URL: Final = re.compile(r"(file|pipe):|[a-z][a-z0-9+.-]*://", re.IGNORECASE)
"""What webdataset takes beside paths: ``https://…``, ``s3://…``, ``pipe:…``."""


def expand(patterns: Sequence[str], *, repeated: bool = False) -> list[Path]:
    """Return the files that ``patterns`` stand for, in their order, those of one glob sorted.

    Braces are expanded first, then ``~``, then ``*``, ``**``, ``?`` and ``[…]``; a file whose name looks like a glob is
    found too. Raises `ShardError` for what is not there, `UsageError` for none or too many, and for files given twice,
    which are a mistake unless ``repeated`` says otherwise.
    """
    paths: list[Path] = []
    for pattern in patterns:
        for name in braces.expand(pattern):
            paths.extend(_found(os.path.expanduser(name), pattern))  # noqa: PTH111  # Path's raises without a home
            if len(paths) > limits.SHARDS:
                raise UsageError(f"{pattern!r} brings the shards to more than {limits.SHARDS:,}; make larger ones")
    if not paths:
        raise UsageError("no shards are given; name some, for example 'train-{0000..1280}.tar'")
    [(most, count)] = Counter(path.absolute() for path in paths).most_common(1)
    if count > 1 and not repeated:
        raise UsageError(f"the shard {most} is given {count:,} times; name every shard once, or say --repeated")
    return paths


def _found(name: str, pattern: str) -> list[Path]:
    path = Path(name)
    try:
        path.stat()
    except OSError as error:
        if _URL.match(pattern):
            reason = "feedmill reads files; copy it to a disk here, or mount it, and give its path"
            raise ShardError(pattern, reason) from None
        if not MAGIC.search(name):
            raise ShardError(name, f"{error.strerror}; {pattern!r} asks for it, check its path and bounds") from None
    else:
        return [path]
    if found := sorted(glob.glob(name, recursive=True)):  # noqa: PTH207  # Path.glob refuses absolute patterns
        return [Path(path) for path in found]
    try:  # glob says nothing of a folder that it may not read
        next(path.parent.iterdir(), None)
    except PermissionError as error:
        raise ShardError(name, f"{path.parent} cannot be read: {error.strerror}; allow this user to") from None
    except OSError:
        pass  # there is no such folder, or it has a pattern in its name
    raise ShardError(name, f"no file matches {pattern!r}; check it against the folder")


def names(paths: Sequence[Path]) -> list[str]:
    """Return what the shards at ``paths`` are called: their base names, or their paths below the folder they share."""
    found = [path.name for path in paths]
    if len(set(found)) < len(found):
        absolute = [path.absolute() for path in paths]
        folder = os.path.commonpath([path.parent for path in absolute])
        found = [str(path.relative_to(folder)) for path in absolute]
    return [os.fsencode(name).decode(errors="backslashreplace") for name in found]  # names travel as UTF-8
