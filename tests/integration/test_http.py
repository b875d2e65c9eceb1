"""What a server tells over HTTP while it works, drains, or is pestered."""

import http.client
import io
import json
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

import feedmill
from integration.epochs import TIMEOUT, Reference, assert_same
from integration.fleet import PIPELINES, Data
from integration.processes import Served, command, environment, wait_until

Serve = Callable[..., Served]


def port_of(served: Served) -> int:
    """Return where a server that was started with ``--http '*'`` has its page."""
    (url,) = re.findall(r"page and metrics at http://127\.0\.0\.1:(\d+)/", served.log)
    return int(url)


def ask(port: int, path: str) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()


def metrics(port: int) -> dict[str, float]:
    families = text_string_to_metric_families(ask(port, "/metrics")[1].decode())
    return {" ".join([s.name, *s.labels.values()]): s.value for family in families for s in family.samples}


@pytest.fixture
def pictures(data: Data, serve: Serve) -> Served:
    """Return a server of pictures, with a page."""
    stream = data["pictures"]
    options = ("--preset", "imagenet-train", "--batch-size", "16", "--workers", "2", "--http", "*")
    return serve(*stream.shards, "--stream", "pictures", *options)


def test_a_server_tells_what_it_has_done(pictures: Served) -> None:
    """After an epoch: health, counts, stages, a picture; and what clients there are while there are any."""
    port = port_of(pictures)
    wait_until(lambda: ask(port, "/readyz") == ask(port, "/healthz") == (200, b"ok\n"), 2, "it serves")
    assert ask(port, "/newest.jpg")[0] == 404
    assert json.loads(ask(port, "/status.json")[1])["verdict"] == "No trainer is connected."
    with feedmill.connect(pictures.url, timeout=TIMEOUT) as feed:
        assert sum(len(batch.keys) for batch in feed.batches()) == 120
        wait_until(lambda: metrics(port)["feedmill_samples_total"] >= 120, 5, "all is counted")
        status = json.loads(ask(port, "/status.json")[1])
        assert [client["address"] for client in status["clients"]] == ["127.0.0.1"]
        code, jpeg = ask(port, "/newest.jpg")
    assert code == 200
    with Image.open(io.BytesIO(jpeg)) as sheet:
        assert sheet.width > 1000
    seen = metrics(port)
    assert seen["feedmill_batches_total"] * 16 >= seen["feedmill_samples_total"] >= 120
    assert seen["feedmill_bytes_total"] > 120 * 3 * 224 * 224
    assert all(seen[f"feedmill_stage_seconds_total {stage}"] > 0 for stage in ("read", "decode", "transform", "send"))
    assert seen["feedmill_workers"] == seen["feedmill_ready"] + 1 == 2
    assert ask(port, "/")[1].startswith(b"<!doctype html>")
    wait_until(lambda: metrics(port)["feedmill_clients"] == 0, 5, "the client has said good-bye")


def test_bad_samples_are_told_with_shard_and_key(data: Data, serve: Serve) -> None:
    """Skipped ones are counted by reason; one that ends an iteration is told as such."""
    options = ("--pipeline", f"{PIPELINES}:RAISES", "--workers", "1", "--http", "*")
    served = serve(*data["raises"].shards, *options)
    port = port_of(served)
    with feedmill.connect(served.url, on_error="skip", timeout=TIMEOUT) as feed:
        assert sum(len(batch.keys) for batch in feed.batches()) == 99
    with feedmill.connect(served.url, timeout=TIMEOUT) as feed, pytest.raises(feedmill.SampleError):
        list(feed.batches())
    wait_until(lambda: metrics(port)["feedmill_failed_batches_total"], 5, "the failure is counted")
    assert metrics(port)["feedmill_skipped_samples_total sample"] >= 1
    (told,) = json.loads(ask(port, "/status.json")[1])["bad"]
    assert (told["shard"], told["key"], told["failed"]) == ("numbers-0.tar", "013", 1)
    assert told["skipped"] >= 1
    assert "thirteen brings bad luck" in told["reason"]


def _try_one(feed: feedmill.Feed) -> None:
    with suppress(feedmill.FeedmillError):
        next(feed.batches(), None)


def test_a_server_that_drains_is_alive_and_not_ready(data: Data, serve: Serve) -> None:
    """Whoever balances load sends nobody there any more, and nobody kills it before it is through."""
    served = serve(*data["slow"].shards, "--pipeline", f"{PIPELINES}:VERY_SLOW", "--workers", "1", "--http", "*")
    port = port_of(served)
    with feedmill.connect(served.url, timeout=TIMEOUT) as feed:
        trainer = threading.Thread(target=_try_one, args=(feed,))
        trainer.start()
        wait_until(lambda: metrics(port)["feedmill_open_requests"], 5, "something was asked for")
        assert ask(port, "/readyz") == (200, b"ok\n")
        served.signal(signal.SIGTERM)
        wait_until(lambda: ask(port, "/readyz") == (503, b"draining\n"), 2, "it is not ready")
        assert ask(port, "/healthz") == (200, b"ok\n")
        assert served.process.wait(20) == 0  # within 5 s, on a machine that is not busy
        feed.close()
        trainer.join(10)


def test_the_page_answers_while_a_server_is_being_prepared(data: Data, tmp_path: Path) -> None:
    """An index may take an hour. The server is alive and not ready, and ends when it is told to."""
    (tmp_path / "late.py").write_text("import time\ntime.sleep(60)\n")
    args = ("--pipeline", "late.py:P", "--bind", "tcp://127.0.0.1:*", "--http", "*")
    log = tmp_path / "log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command("serve", *data["slow"].shards, *args), stderr=stderr, env=environment(tmp_path), cwd=tmp_path
        ) as process,
    ):
        try:
            wait_until(lambda: "page and metrics" in log.read_text(), 30, "the page is there")
            port = port_of(Served("", process, log))  # type: ignore[arg-type] # it writes no text
            assert ask(port, "/healthz") == (200, b"ok\n")
            assert ask(port, "/readyz") == (503, b"starting\n")
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_a_port_that_is_taken_is_an_error_before_anything_is_read(pictures: Served, tmp_path: Path) -> None:
    """One line, which names the address and the option."""
    port = port_of(pictures)
    args = command("serve", "nothing.tar", "--preset", "imagenet-train", "--http", str(port))
    ended = subprocess.run(args, capture_output=True, text=True, timeout=60, env=environment(tmp_path), check=False)
    assert ended.returncode == 2
    assert (
        f"cannot listen on http://127.0.0.1:{port}: Address already in use; choose another with --http" in ended.stderr
    )


def test_an_epoch_is_served_whatever_happens_at_the_page(pictures: Served, reference: Reference) -> None:
    """Half requests, answers that nobody reads, and a flood of good and bad ones: the same batches, and no delay."""
    port = port_of(pictures)
    stop = threading.Event()

    def pester() -> None:
        requests = (b"GET /metrics HTTP/1.1\r\n\r\n", b"GET /newest.jpg HTTP/1.1\r\n\r\n", b"\x00" * 9000, b"GET /")
        while not stop.is_set():
            for request in requests:
                try:
                    with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                        connection.sendall(request)
                except OSError:  # the queue is full, or we were hung up on
                    time.sleep(0.01)

    with ExitStack() as stack:
        for _ in range(40):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            idle.sendall(b"GET /status.json HTTP/1.1\r\n")
        for _ in range(2):
            pest = threading.Thread(target=pester)
            stack.callback(pest.join, 10)
            pest.start()
        stack.callback(stop.set)
        with feedmill.connect(pictures.url, "pictures", timeout=TIMEOUT) as feed:
            batches = list(feed.batches())
    assert_same(batches, reference("pictures"))
    assert ask(port, "/healthz")[0] == 200
    assert "Traceback" not in pictures.log
