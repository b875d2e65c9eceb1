"""Samples as files of a folder.

The rule of this file: whatever the names in a shard say, nothing is written outside the folder, and nothing that is
there already is touched unless that is asked for. Shards hold no links (`feedmill_server.tar`), so a name that has no
``..`` and is not absolute could only leave by a link that was in the folder before; those are not followed.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from feedmill_protocol.errors import ShardError, UsageError
from feedmill_protocol.printing import printable

from .fields import Field, MissingField
from .shards import Shard

__all__ = ["extract"]


def extract(shard: Shard, i: int, folder: Path, fields: Sequence[Field] = (), *, force: bool = False) -> int:
    """Write the members of sample ``i`` that ``fields`` choose, or all, and return their bytes.

    Files are named by key and extension; folders in the key are made. Raises `ShardError` for a name that would leave
    ``folder``, and `UsageError` for a file that exists unless ``force``, or that cannot be written.
    """
    key, there = shard.index.key(i), shard.index.members(i)
    if fields:
        chosen = {}
        for field in fields:
            with suppress(MissingField):
                extension, place = field.choose(there)
                chosen[extension] = place
        there = chosen
    total = 0
    for extension, (offset, size) in there.items():
        target = _target(shard.name, f"{key}.{extension}", folder)
        _write(target, shard.read(offset, size), force=force)
        total += size
    return total


def _target(shard: str, name: str, folder: Path) -> Path:
    """Return where a member goes, its folder made."""
    *folders, base = (part for part in name.split("/") if part not in {"", "."})
    if name.startswith("/") or ".." in folders:
        raise ShardError(
            shard,
            f"member {printable(name)} would be written outside {folder}; extract the others with --where, "
            "and mistrust the shard",
        )
    for part in folders:
        folder /= part
        _make(folder)
    return folder / base


def _make(folder: Path) -> None:
    try:
        if folder.is_symlink():
            raise UsageError(f"{folder} is a link, and may lead anywhere; remove it, or extract to another folder")
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror or error}") from error


def _write(target: Path, data: bytes, *, force: bool) -> None:
    try:
        if force:
            target.unlink(missing_ok=True)  # and not written through: it may be a link
        with target.open("xb") as file:
            try:
                file.write(data)
                file.flush()
            except BaseException:
                target.unlink()
                raise
    except FileExistsError:
        raise UsageError(f"{target} exists; --force replaces it") from None
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror or error}") from error
