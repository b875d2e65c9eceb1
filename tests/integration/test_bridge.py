"""A bridge between a server and unmodified clients of tensorcom."""

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import feedmill
from integration.epochs import TIMEOUT
from integration.fleet import Data, Fleet
from integration.processes import Served, command, environment, read_line, wait_until

Bridge = Callable[..., subprocess.Popen[str]]

READER = textwrap.dedent("""
    import sys, tensorcom, torch
    for images, labels in tensorcom.Connection(sys.argv[1], converters="torch").items():
        print(tuple(images.shape), images.dtype, labels.dtype, *labels.tolist(), flush=True)
""")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start commands that write to pipes; they are killed after the test."""
    with ExitStack() as stack:

        def run(*args: str) -> subprocess.Popen[str]:
            process = stack.enter_context(
                subprocess.Popen(
                    args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(tmp_path)
                )
            )
            stack.callback(process.kill)
            return process

        yield run


@pytest.fixture
def bridge(start: Bridge) -> Bridge:
    """Start ``feedmill bridge``."""
    return lambda *args: start(*command("bridge", *args))


def endpoint(process: subprocess.Popen[str]) -> str:
    """Return where a bridge listens, which it says in its first line."""
    assert process.stderr is not None
    line = read_line(process.stderr, TIMEOUT)
    return line.partition(" goes to tcp://")[2].partition(";")[0]


@pytest.fixture
def their_reader(start: Bridge) -> Callable[[str], subprocess.Popen[str]]:
    """Start a reader that is nothing but tensorcom."""
    return lambda url: start(sys.executable, "-W", "ignore", "-c", READER, url)


def epoch_of(url: str, stream: str) -> list[tuple[torch.Tensor, ...]]:
    with feedmill.connect(url, stream, timeout=TIMEOUT) as feed:
        return list(feed)


@pytest.mark.parametrize(("send", "receive"), [("zpub", "zsub"), ("zrpush", "zrpull")])
def test_a_tensorcom_client_gets_what_a_feed_gets(
    send: str, receive: str, bridge: Bridge, fleet: Fleet, data: Data
) -> None:
    """Bit for bit, with tensorcom's own "torch" converter; and the bridge ends after its epochs."""
    import tensorcom

    expected = epoch_of(fleet["two"], data["pictures"].stream)
    process = bridge(fleet["two"], f"{send}://127.0.0.1:*", "--stream", "pictures", "--epochs", "1")
    connection = tensorcom.Connection(f"{receive}://{endpoint(process)}")
    try:
        received = [[torch.tensor(array) for array in connection.recv()] for _ in expected]
    finally:
        connection.context.destroy(linger=0)
    for (images, labels), (wanted, numbers) in zip(received, expected, strict=True):
        assert torch.equal(images.permute(0, 3, 1, 2), wanted)
        assert torch.equal(labels, numbers)
    assert process.wait(TIMEOUT) == 0


def test_readers_that_stay_share_an_epoch_without_loss(bridge: Bridge, fleet: Fleet) -> None:
    """Each batch comes to one of them; the bridge ends when they have taken all."""
    process = bridge(fleet["two"], "zrpush://127.0.0.1:*", "--stream", "pictures", "--epochs", "1", "--hwm", "1")
    url = f"zrpull://{endpoint(process)}"

    def labels(reader: feedmill.Connection) -> list[int]:
        found: list[int] = []
        with reader, suppress(feedmill.ServerUnavailable):
            for _, numbers in reader:
                found += numbers.tolist()
        return found

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(labels, [feedmill.Connection(url, hwm=1, timeout=5.0) for _ in range(2)]))
    assert process.wait(TIMEOUT) == 0
    assert all(found)
    expected = torch.cat([numbers for _, numbers in epoch_of(fleet["two"], "pictures")]).tolist()
    assert sorted(found[0] + found[1]) == sorted(expected)


def test_a_reader_that_is_killed_ends_nothing(bridge: Bridge, their_reader: Callable[[str], Any], fleet: Fleet) -> None:
    """The other gets the rest; then Ctrl-C ends the bridge, at once and in silence."""
    process = bridge(fleet["two"], "zrpush://127.0.0.1:*", "--stream", "pictures", "--hwm", "1", "--dtype", "uint8")
    url = f"zrpull://{endpoint(process)}"
    first, second = their_reader(url), their_reader(url)
    for reader in (first, second):
        assert ", 3, 224, 224) torch.uint8 torch.int64 " in read_line(reader.stdout, TIMEOUT)
    first.kill()
    for _ in range(20):  # more than an epoch
        assert read_line(second.stdout, TIMEOUT)
    process.send_signal(signal.SIGINT)
    assert process.wait(TIMEOUT) == 130
    assert "Traceback" not in process.stderr.read()  # type: ignore[union-attr]


def test_ctrl_c_ends_a_bridge_that_waits_for_its_first_reader(bridge: Bridge, fleet: Fleet) -> None:
    """It does nothing until there is one."""
    process = bridge(fleet["two"], "zpub://127.0.0.1:*", "--stream", "pictures")
    endpoint(process)
    process.send_signal(signal.SIGINT)
    assert process.wait(TIMEOUT) == 130
    assert process.stderr.read() == ""  # type: ignore[union-attr]


def test_a_lost_server_is_one_line_and_exit_code_2(
    bridge: Bridge, their_reader: Callable[[str], Any], serve: Callable[..., Served], data: Data
) -> None:
    """The feed's own error, after the feed's time-out."""
    served = serve("--config", data.config, "--workers", "1", "--memory", "160MB")
    process = bridge(served.url, "zrpush://127.0.0.1:*", "--stream", "pictures", "--timeout", "1.5")
    reader = their_reader(f"zrpull://{endpoint(process)}")
    read_line(reader.stdout, TIMEOUT)
    served.signal(signal.SIGKILL)
    assert process.wait(TIMEOUT) == 2
    *_, last = process.stderr.read().splitlines()  # type: ignore[union-attr]
    assert last.startswith("feedmill: no server made progress for 1.5 s")
    wait_until(lambda: served.process.poll() is not None, 5, "the server has ended")
