"""The gate: who may connect, where a server has keys.

CURVE encrypts, and has each side prove that it holds its secret key; whether we want to talk to the holder of that key
is asked of a ZAP handler (https://rfc.zeromq.org/spec/27). Without one libzmq lets everybody in who knows the server's
public key. So the handler runs before the server listens, and is tried: a stranger must be refused.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import recv_monitor_message

from feedmill_protocol.errors import FeedmillError, UsageError

from .complaints import Complaints

__all__ = ["Gate"]

_READ_AGAIN: Final = 1.0
"""Seconds until a folder of keys is read again: so long does it take that a new trainer is let in."""

_DOMAIN: Final = "feedmill"
"""The name under which libzmq asks; it goes no further than this process."""

_TRIAL_MS: Final = 5_000

_log = logging.getLogger(__name__)


class Gate:
    """Lets those in whose public keys are in the folder ``clients``; ``keys`` has the server's own pair.

    `open` it before the sockets that it is to `secure`, and `close` it after them. Raises UsageError for folders
    without keys.
    """

    def __init__(self, keys: Path, clients: Path) -> None:
        self._public, self._secret = _pair(keys / "server.key_secret")
        self._guests = _Guests(clients)
        self._guard: ThreadAuthenticator | None = None

    def open(self, context: zmq.Context[Any]) -> Self:
        """Begin to answer for the sockets of a context. Raises FeedmillError if a stranger is let in all the same."""
        self._guard = ThreadAuthenticator(context)
        self._guard.start()
        self._guard.configure_curve_callback(_DOMAIN, self._guests)
        stranger, guest = zmq.curve_keypair(), zmq.curve_keypair()
        with self._guests.invited(guest[0]):
            if self._try(context, stranger) != zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                raise FeedmillError("a stranger was let in, in a trial; this libzmq cannot keep strangers out")
            if self._try(context, guest) != zmq.EVENT_HANDSHAKE_SUCCEEDED:
                raise FeedmillError("a guest was kept out, in a trial; this libzmq cannot do what --keys asks for")
        return self

    def close(self) -> None:
        """End the guard. Sockets that listen on let nobody in any more."""
        if self._guard is not None:
            self._guard.stop()
            self._guard = None

    def secure(self, socket: zmq.Socket[Any]) -> None:
        """Have a socket that is about to listen ask who comes."""
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = self._public, self._secret
        socket.zap_domain = _DOMAIN.encode()

    def _try(self, context: zmq.Context[Any], pair: tuple[bytes, bytes]) -> int:
        """Have somebody come to a socket like the server's; return how libzmq says that it went, 0 for not at all."""
        with context.socket(zmq.ROUTER) as ours, context.socket(zmq.DEALER) as theirs:
            ours.linger = theirs.linger = 0
            self.secure(ours)
            port = ours.bind_to_random_port("tcp://127.0.0.1")
            theirs.curve_publickey, theirs.curve_secretkey = pair
            theirs.curve_serverkey = self._public
            with theirs.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH) as monitor:
                theirs.connect(f"tcp://127.0.0.1:{port}")
                event = recv_monitor_message(monitor)["event"] if monitor.poll(_TRIAL_MS) else 0
                theirs.disable_monitor()
        return int(event)


class _Guests:
    """The public keys in a folder, read again when they may have changed. Called by the guard's thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._complaints = Complaints()
        self._keys: frozenset[bytes] = frozenset()
        self._read_at = 0.0
        self._invited = b""
        if not self._read():
            raise UsageError(
                f"authorized_clients={str(folder)!r}: there is no *.key of a trainer; 'feedmill keygen DIR' makes some"
            )

    @contextmanager
    def invited(self, key: bytes) -> Iterator[None]:
        """Let the holder of one more key in, and keep silent about all others."""
        self._invited = key
        try:
            yield
        finally:
            self._invited = b""

    def callback(self, _domain: str, key: bytes) -> bool:
        """Tell whether the holder of a key may come in."""
        now = time.monotonic()
        if now - self._read_at > _READ_AGAIN:
            self._read()
        if key in self._keys or key == self._invited:
            return True
        if not self._invited and (refused := self._complaints.due(b"", now)):
            _log.warning(
                "refused %d connections with keys that are not in %s, the last %s",
                refused,
                self._folder,
                key.decode(errors="replace"),
            )
        return False

    def _read(self) -> int:
        """Read the folder; return how many keys there are. Who cannot be read cannot come in."""
        self._read_at = time.monotonic()
        found = set()
        for path in sorted(self._folder.glob("*.key")):
            if path.name == "server.key":
                continue
            try:
                public, _ = zmq.auth.load_certificate(path)
            except (OSError, ValueError) as error:
                if self._complaints.due(bytes(path), self._read_at):
                    _log.warning("%s holds no public key: %s", path, error)
            else:
                found.add(public)
        self._keys = frozenset(found)
        return len(found)


def _pair(path: Path) -> tuple[bytes, bytes]:
    try:
        public, secret = zmq.auth.load_certificate(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"keys={str(path.parent)!r}: {error}; 'feedmill keygen DIR' makes keys") from None
    if secret is None:
        raise UsageError(f"keys={str(path.parent)!r}: {path.name} holds no secret key")
    try:
        fits = zmq.curve_public(secret) == public
    except (ValueError, zmq.ZMQError):  # of another length, or not in Z85
        fits = False
    if not fits:
        raise UsageError(
            f"keys={str(path.parent)!r}: {path.name} holds no pair of keys, or two halves; "
            "'feedmill keygen DIR' makes keys"
        )
    return public, secret
