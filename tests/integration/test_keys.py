"""Servers with keys: who is let in, who is not, and what each is told."""

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
import zmq.auth

import feedmill
from feedmill import keys
from feedmill_protocol import codec
from feedmill_protocol.errors import FeedmillError
from feedmill_protocol.messages import Hello
from feedmill_server import gate
from feedmill_server.gate import Gate
from integration.epochs import TIMEOUT
from integration.fleet import PIPELINES
from integration.processes import Served, command, environment
from shardmaker import write_tar

SOON = 3.0
"""Seconds after which a client that is not let in gives up, here."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the keys of servers and of trainers, and one of the trainers that are let in."""
    keys.generate(tmp_path / "keys", ("server", "client", "alice"))
    (tmp_path / "guests").mkdir()
    shutil.copy(tmp_path / "keys" / "client.key", tmp_path / "guests")
    return tmp_path


@pytest.fixture
def served(folder: Path, serve: Callable[..., Served]) -> Served:
    """Return a server with keys, on all addresses."""
    shard = write_tar(folder / "n.tar", [(f"{n:02d}", {"cls": b"%d" % n}) for n in range(30)])
    pipeline = ("--pipeline", f"{PIPELINES}:DRAWS", "--bind", "tcp://0.0.0.0:*", "--workers", "1")
    return serve(shard, *pipeline, "--keys", folder / "keys", "--authorized-clients", folder / "guests")


@pytest.fixture
def url(served: Served) -> Iterator[str]:
    """Return where a server with keys is, which must be well when the test is over."""
    yield f"tcp://127.0.0.1:{served.port}"
    assert served.process.poll() is None


def test_who_has_a_key_that_is_known_is_served(folder: Path, url: str) -> None:
    """Over an address that others reach, too: no --insecure is needed."""
    with feedmill.connect(url, keys=folder / "keys", timeout=TIMEOUT) as feed:
        assert sum(len(batch.keys) for batch in feed.batches()) == 30


def test_who_has_another_key_gets_nothing(folder: Path, url: str, served: Served) -> None:
    """He is told so, within his timeout; the log has one line for all his tries."""
    with pytest.raises(feedmill.ServerUnavailable, match="does not know our key; put it into its folder"):
        feedmill.connect(url, keys=folder / "keys" / "alice.key_secret", timeout=SOON)
    public = keys.load(folder / "keys" / "alice.key_secret").public.decode()
    (line,) = [line for line in served.log.splitlines() if "refused" in line]
    assert line.endswith(f"are not in {folder / 'guests'}, the last {public}")


def test_who_has_no_key_gets_nothing(url: str) -> None:
    """Nor does he learn more than that there are keys."""
    with pytest.raises(feedmill.ServerUnavailable, match="one side has keys"):
        feedmill.connect(url, timeout=SOON)


def test_a_server_of_other_keys_is_not_talked_to(folder: Path, url: str) -> None:
    """It may be anybody."""
    keys.generate(folder / "others")
    with pytest.raises(feedmill.ServerUnavailable, match=r"or server\.key is another server's"):
        feedmill.connect(url, keys=folder / "others", timeout=SOON)


def test_a_key_that_is_added_is_known_at_once_and_one_that_is_removed_is_not(folder: Path, url: str) -> None:
    """No server is restarted for it."""
    alice = folder / "keys" / "alice.key_secret"
    shutil.copy(folder / "keys" / "alice.key", folder / "guests")
    with feedmill.connect(url, keys=alice, timeout=TIMEOUT) as feed:
        assert len(list(feed.batches())) == len(feed)
    (folder / "guests" / "alice.key").unlink()
    time.sleep(1.1)  # for so long, keys are not read again
    with pytest.raises(feedmill.ServerUnavailable, match="does not know our key"):
        feedmill.connect(url, keys=alice, timeout=SOON)


def test_a_trainer_that_waits_is_let_in_when_its_key_is_added(folder: Path, url: str) -> None:
    """It asks again and again."""
    with subprocess.Popen(
        command("bench", url, "--batches", "1", "--keys", folder / "keys" / "alice.key_secret"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(folder),
    ) as bench:
        assert bench.stderr is not None
        assert "does not know our key" in bench.stderr.readline()
        shutil.copy(folder / "keys" / "alice.key", folder / "guests")
        out, err = bench.communicate(timeout=TIMEOUT)
    assert (bench.returncode, err) == (0, "")
    assert "samples" in out


def test_a_stranger_who_speaks_our_protocol_gets_no_answer(url: str) -> None:
    """Not one byte of a message passes before keys are exchanged."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(url)
        socket.send_multipart(codec.seal(Hello()))
        assert not socket.poll(1000)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--keys", "nowhere"], "keys='nowhere': Invalid certificate file: nowhere/server.key_secret"),
        (["--keys", "keys", "--authorized-clients", "empty"], r"authorized_clients='empty': there is no \*.key"),
        (["--keys", "odd"], "keys='odd': server.key_secret holds no pair of keys, or two halves"),
        (["--keys", "halves"], "keys='halves': server.key_secret holds no pair of keys, or two halves"),
        (["--authorized-clients", "guests"], "authorized_clients='guests': without keys there is no telling who"),
    ],
)
def test_keys_that_cannot_be_used_end_a_server_at_once(folder: Path, options: list[str], error: str) -> None:
    """The error names what is missing."""
    (folder / "empty").mkdir()
    public, _ = zmq.auth.load_certificate(folder / "keys" / "client.key")
    _, secret = zmq.auth.load_certificate(folder / "keys" / "server.key_secret")
    for name, first, second in (("odd", b"#" * 40, b"#" * 40), ("halves", public, secret)):
        (folder / name).mkdir()
        text = f'public-key = "{first.decode()}"\nsecret-key = "{(second or b"").decode()}"\n'
        (folder / name / "server.key_secret").write_text(text)
    done = subprocess.run(
        command("serve", "n.tar", "--pipeline", f"{PIPELINES}:DRAWS", *options),
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(folder),
        cwd=folder,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.search(error, line)


@pytest.mark.parametrize(
    ("lets_in", "error"),
    [(True, "a stranger was let in, in a trial"), (False, "a guest was kept out, in a trial")],
)
def test_a_gate_that_does_not_tell_who_comes_is_found_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, lets_in: bool, error: str
) -> None:
    """It lets everybody in, as one without a ZAP handler would, or nobody."""
    tried = Gate(folder / "keys", folder / "guests")
    monkeypatch.setattr(gate._Guests, "callback", lambda *_: lets_in)
    with zmq.Context() as context:
        try:
            with pytest.raises(FeedmillError, match=error):
                tried.open(context)
        finally:
            tried.close()
