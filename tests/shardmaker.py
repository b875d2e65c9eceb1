"""Shards for tests, written by Python's own tarfile."""

import gzip as gzip_module
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def tar_bytes(members: Iterable[tuple[str, bytes]], *, format: str = "ustar") -> bytes:  # noqa: A002
    """Return a tar of files with these names and contents."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=FORMATS[format]) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write_tar(
    path: Path,
    samples: Iterable[tuple[str, dict[str, bytes]]],
    *,
    format: str = "ustar",  # noqa: A002
    gzip: bool = False,
) -> Path:
    """Write a shard of ``(key, {extension: content})`` to ``path``, and return ``path``."""
    members = ((f"{key}.{extension}", content) for key, fields in samples for extension, content in fields.items())
    data = tar_bytes(members, format=format)
    path.write_bytes(gzip_module.compress(data, mtime=0) if gzip else data)
    return path
