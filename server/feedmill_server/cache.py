"""Files that only save time: where they lie, and how they are written.

The rule of this file: a cache file is there whole or not at all, whoever else writes it at the same time, and however
the writer ends.
"""

import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

__all__ = ["replacing", "sweep", "user_cache"]

ABANDONED_SECONDS: Final = 3600
"""A temporary file that nobody has written to for so long has lost its writer."""


def user_cache() -> Path:
    """Return the folder for what feedmill may keep for this user, by the XDG rules. It need not exist."""
    if (given := os.environ.get("XDG_CACHE_HOME", "")).startswith("/"):
        return Path(given) / "feedmill"
    try:
        return Path.home() / ".cache" / "feedmill"
    except RuntimeError:  # a container's user that has neither HOME nor an entry in passwd
        return Path(tempfile.gettempdir()) / f"feedmill-{os.getuid()}"


@contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """Write a temporary file that becomes ``target`` when the block ends well, and goes away when it does not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sweep(folder: Path) -> None:
    """Remove the temporary files of writers that were killed."""
    oldest = time.time() - ABANDONED_SECONDS
    for temporary in folder.glob("*.tmp"):
        with suppress(OSError):  # somebody else may sweep too
            if temporary.stat().st_mtime < oldest:
                temporary.unlink()
