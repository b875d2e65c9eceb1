"""``feedmill top`` as a user runs it, before a real server."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import feedmill
from integration.commands import Run, runner
from integration.epochs import TIMEOUT
from integration.fleet import PIPELINES, Data
from integration.processes import Served, command, environment, read_line, wait_until
from integration.test_http import port_of

DEADLINE = 30.0


@pytest.fixture
def served(data: Data, serve: Callable[..., Served]) -> Served:
    """Return a server with a page, which has skipped a sample."""
    served = serve(*data["raises"].shards, "--pipeline", f"{PIPELINES}:RAISES", "--workers", "1", "--http", "*")
    with feedmill.connect(served.url, on_error="skip", timeout=TIMEOUT) as feed:
        assert sum(len(batch.keys) for batch in feed.batches()) == 99
    return served


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return what runs ``feedmill top`` in this process."""
    run = runner(tmp_path, tmp_path, monkeypatch, capsys)
    return lambda *args: run("top", *args)


class Terminal:
    """A command at a terminal, and what it has shown so far."""

    def __init__(self, process: "subprocess.Popen[bytes]", master: int) -> None:
        self.process = process
        self._master = master
        self._shown = ""

    def wait_for(self, *words: str) -> None:
        """Wait until it has shown all of some words since the last time."""

        def seen() -> bool:
            self._shown += os.read(self._master, 65536).decode(errors="replace")
            return all(word in self._shown for word in words)

        wait_until(seen, DEADLINE, f"{words} are shown")
        self._shown = ""

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Send a signal; return the exit code, and what was shown until then."""
        self.process.send_signal(number)
        code = self.process.wait(DEADLINE)
        return code, os.read(self._master, 65536).decode(errors="replace")


@contextmanager
def terminal(folder: Path, *args: str) -> Iterator[Terminal]:
    """Run ``feedmill top`` at a terminal of 100 columns."""
    master, slave = os.openpty()
    env = environment(folder, {"TERM": "xterm", "COLUMNS": "100", "LINES": "24"})
    with subprocess.Popen(command("top", *args), stdout=slave, stderr=slave, env=env) as process:
        os.close(slave)
        try:
            yield Terminal(process, master)
        finally:
            process.kill()
            os.close(master)


def test_top_shows_servers_live_and_die(served: Served, tmp_path: Path) -> None:
    """On a screen of its own, which it leaves as it was, whether by Ctrl-C or SIGTERM."""
    url = f"127.0.0.1:{port_of(served)}"
    with terminal(tmp_path, url, "--every", "0.1") as screen, terminal(tmp_path, url) as other:
        screen.wait_for("\x1b[?1049h", f"http://{url}", "serving", "thirteen brings bad luck")
        other.wait_for("serving")
        code, shown = other.end(signal.SIGTERM)
        assert (code, "\x1b[?1049l" in shown, "\x1b[?25h" in shown) == (143, True, True)
        served.signal(signal.SIGKILL)
        screen.wait_for("no answer", "Connection refused; last heard")
        code, shown = screen.end(signal.SIGINT)
        assert (code, "\x1b[?1049l" in shown, "\x1b[?25h" in shown, "Traceback" in shown) == (0, True, True, False)


def test_top_prints_where_there_is_no_terminal(served: Served, top: Run, tmp_path: Path) -> None:
    """Once as a table or JSON, with 2 if a server is missing; else a line for each interval, until nobody reads."""
    port = port_of(served)
    report: dict[str, Any] = {}

    def counted() -> bool:
        once = top(f"127.0.0.1:{port}", "--once", "--json")
        assert (once.code, once.stderr) == (0, "")
        report.update(json.loads(once.stdout))
        return bool(report["skipped"])

    wait_until(counted, 5, "the bad sample is counted")
    assert (report["servers"], report["answering"], report["workforce"]) == (1, 1, 1)
    (one,) = report["by_server"].values()
    assert (one["state"], one["bad"][0]["key"]) == ("serving", "013")
    table = top(f"127.0.0.1:{{{port},1}}", "--once")
    assert (table.code, table.stderr) == (2, "")
    assert "\x1b" not in table.stdout
    assert "http://127.0.0.1:1  Connection refused\n" in table.stdout
    with subprocess.Popen(
        command("top", f"127.0.0.1:{port}", "--every", "0.1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert " 1 of 1 servers, " in [read_line(process.stdout, DEADLINE) for _ in range(2)][1]
        process.stdout.close()
        assert process.wait(DEADLINE) == 141
        assert process.stderr.read() == ""


def test_top_says_what_cannot_be_watched(top: Run) -> None:
    """In one line."""
    for args, says in (
        (("tcp://cpu-0:7880",), "'tcp://cpu-0:7880': expected http://HOST:PORT"),
        (("cpu-0:9880", "--every", "nan"), "--every=nan: expected a positive number of seconds, 86,400 at most"),
    ):
        done = top(*args)
        assert (done.code, done.stdout) == (2, "")
        assert done.stderr.startswith(f"feedmill: {says}")
        assert done.stderr.count("\n") == 1
