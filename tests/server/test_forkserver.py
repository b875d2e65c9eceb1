import os
import socket
from typing import NoReturn

import pytest

from feedmill_server import forkserver
from feedmill_server.channel import Channel, ChannelClosed
from feedmill_server.watch import Watch


def test_a_fork_that_fails_costs_one_worker_and_not_all(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The kernel may be short of processes for a while; the broker is told, and asks again later."""

    def refuse() -> NoReturn:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    broker, end = Channel.pair()
    other, worker = Channel.pair()
    watch, fd = Watch.create()
    broker.send("fork", 7, fds=[worker.fileno(), fd])
    broker._socket.shutdown(socket.SHUT_WR)
    with end, worker, pytest.raises(ChannelClosed):
        forkserver._serve(Channel(end), [], None)
    assert broker.receive(1)[0] == ["exited", 7, 1]
    assert "temporarily unavailable" in capfd.readouterr().err
    os.close(fd)
    watch.close()
    other.close()
    broker.close()
