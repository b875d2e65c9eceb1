"""Keys: who may connect to whom, in the files that pyzmq writes (`zmq.auth.create_certificates`).

A pair is NAME.key, which is public, and NAME.key_secret, which is not. Servers share the pair ``server``; a trainer has
a pair of its own, whose public key every server knows, and the servers' public key. ``feedmill keygen`` makes pairs.
"""

import argparse
import logging
import re
import stat
import struct
import sys
import tempfile
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Final

import zmq
import zmq.auth
from zmq.utils import z85

from feedmill_protocol.errors import UsageError

__all__ = ["Keys", "add_arguments", "generate", "load", "run"]

_SERVER: Final = "server"
_CLIENT: Final = "client"
_SECRET: Final = ".key_secret"  # noqa: S105 # the end of a file's name
_PUBLIC: Final = ".key"

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_log = logging.getLogger("feedmill")


@dataclass(frozen=True, slots=True)
class Keys:
    """What a trainer needs: its pair, and the ``server``'s public key; each in Z85, 40 characters."""

    public: bytes
    secret: bytes = field(repr=False)
    server: bytes

    def secure(self, socket: zmq.Socket[bytes]) -> None:
        """Have a socket that is about to connect prove who it is, and accept that server alone."""
        socket.curve_publickey, socket.curve_secretkey = self.public, self.secret
        socket.curve_serverkey = self.server


def load(place: str | PathLike[str]) -> Keys:
    """Read a trainer's keys: a folder with ``client.key_secret`` and ``server.key``, or a secret file with it beside.

    Raises UsageError.
    """
    path = Path(place).expanduser()
    secret_file = path / f"{_CLIENT}{_SECRET}" if path.is_dir() else path
    public, secret = _read(secret_file)
    if secret is None:
        raise UsageError(f"keys={str(place)!r}: {secret_file} holds no secret key; give the file NAME{_SECRET}")
    if stat.S_IMODE(secret_file.stat().st_mode) & 0o077:
        _log.warning("%s can be read by others; chmod 600 it", secret_file)
    server, _ = _read(secret_file.with_name(f"{_SERVER}{_PUBLIC}"))
    return Keys(public, secret, server)


def _read(path: Path) -> tuple[bytes, bytes | None]:
    try:
        keys = zmq.auth.load_certificate(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or ("no such file" if isinstance(error, OSError) else "no key in it")
        raise UsageError(f"keys: {path} cannot be read: {reason}; 'feedmill keygen DIR' makes keys") from None
    if not all(key is None or _is_key(key) for key in keys):
        raise UsageError(f"keys: {path} holds no keys of 40 characters; 'feedmill keygen DIR' makes some")
    return keys


def _is_key(text: bytes) -> bool:
    """Tell whether 40 characters are Z85, without which libzmq takes no key."""
    try:
        return len(z85.decode(text)) == 32
    except (KeyError, ValueError, struct.error):  # struct: five characters of more than 32 bits
        return False


def generate(folder: Path, names: tuple[str, ...] = (_SERVER, _CLIENT)) -> list[Path]:
    """Make a pair for each name; return the files. Raises UsageError, also where there is a file already."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise UsageError(f"name {name!r}: expected letters, digits, '.', '_' and '-', like 'client'")
    wanted = [folder / f"{name}{kind}" for name in names for kind in (_PUBLIC, _SECRET)]
    if existing := [path for path in wanted if path.exists()]:
        raise UsageError(f"{existing[0]} is there already; keys are not overwritten: choose another folder or name")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A folder of this user alone: nobody can read a secret before it has its mode, nor does half a file remain.
        with tempfile.TemporaryDirectory(dir=folder) as private:
            for name in names:
                zmq.auth.create_certificates(private, name)
            for path in wanted:
                made = Path(private, path.name)
                made.chmod(0o600 if path.name.endswith(_SECRET) else 0o644)
                path.hardlink_to(made)  # unlike a rename, it overwrites nothing
    except OSError as error:
        raise UsageError(f"keys cannot be written to {folder}: {error.strerror}") from None
    return wanted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``feedmill keygen``."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to write NAME.key and NAME.key_secret")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"whose pairs to make (default: {_SERVER} and {_CLIENT})"
    )


def run(args: argparse.Namespace) -> int:
    """Make keys, and say which."""
    for path in generate(args.folder, tuple(dict.fromkeys(args.names)) or (_SERVER, _CLIENT)):
        sys.stdout.write(f"{path}\n")
    return 0
