"""The tools as a user runs them: monitor, show, stat on real servers; shards on files."""

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageShow

import feedmill
from integration.commands import Ended, Run, runner
from integration.fleet import Data, Fleet
from integration.processes import command, environment, read_line, wait_until
from shardmaker import tar_bytes, write_tar

DEADLINE = 60.0
"""Seconds: a command imports torch first."""


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return what runs a command here."""
    return runner(tmp_path, tmp_path, monkeypatch, capsys)


def said(done: Ended) -> str:
    """Return what a command that went well has printed."""
    assert (done.code, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def published() -> Iterator[str]:
    """Publish batches on a socket of tensorcom's: pictures that are labelled by their brightness."""
    labels = np.arange(8, dtype=np.int32)
    pictures = np.broadcast_to((labels * 30).astype(np.uint8)[:, None, None, None], (8, 3, 16, 16))
    ended = threading.Event()
    with feedmill.Connection("zpub://127.0.0.1:*", infos=["pic", "cls"], timeout=0.5) as connection:
        port = connection.endpoints[0].rpartition(":")[2]

        def publish() -> None:
            while not ended.wait(0.02):
                with suppress(feedmill.ServerUnavailable):  # nobody reads, just now
                    connection.send([pictures, labels])

        thread = threading.Thread(target=publish)
        thread.start()
        try:
            yield f"zsub://127.0.0.1:{port}"
        finally:
            ended.set()
            thread.join()
            connection.abort()


def test_the_tools_read_tensorcoms_sockets(tool: Run, published: str, tmp_path: Path) -> None:
    """Names are the infos that were sent; who sent a batch nobody tells."""
    report = json.loads(said(tool("monitor", published, "--once", "--json", "--seconds", "0.5")))
    assert 0 < report["servers"][published]["samples_per_second"] == report["samples_per_second"] < 8 * 60
    text = said(tool("show", published, "--count", "5", "-o", "sheet.png"))
    assert text == "sheet.png: 5 pictures of pic with cls\n"
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert [sheet.getpixel((8 + n * 120 + 60, 60)) for n in range(5)] == [(30 * n,) * 3 for n in range(5)]
    pictures, labels = json.loads(said(tool("stat", published, "--batches", "3", "--json")))["fields"]
    assert (pictures["name"], pictures["count"], pictures["max"]) == ("pic", 3 * 8 * 3 * 16 * 16, 210)
    assert (labels["name"], labels["dtypes"], labels["mean"]) == ("cls", {"int32": 3}, 3.5)


def test_monitor_once_tells_rates_in_all_and_by_server(tool: Run, fleet: Fleet) -> None:
    """What the servers sent adds up to the whole."""
    url = fleet["two"]
    report = json.loads(said(tool("monitor", url, "--stream", "pictures", "--once", "--json", "--seconds", "1")))
    assert list(report["servers"]) == [url]
    assert report["servers"][url]["samples_per_second"] == report["samples_per_second"] > 0
    assert report["bytes_per_second"] == pytest.approx(report["samples_per_second"] * (224 * 224 * 3 + 8))
    assert report["wait_p99"] >= report["wait_p50"] >= 0
    assert (report["asked_again"], report["skipped"]) == (0, 0)
    table = said(tool("monitor", url, "--stream", "pictures", "--once", "--seconds", "0.5"))
    assert re.search(
        rf"^{re.escape(url)} +[\d,.]+ +[\d,]+ +[\d,.]+ +[\d,.]+ ms +[\d,.]+ ms  ready$", table, re.MULTILINE
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_monitor_goes_on_until_it_is_ended(fleet: Fleet, tmp_path: Path, number: signal.Signals) -> None:
    """A line for each interval, and no traceback at the end; --limit holds it back."""
    line = ("monitor", fleet["two"], "--stream", "pictures", "--json", "--every", "0.2", "--limit", "5")
    with subprocess.Popen(
        command(*line), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(tmp_path)
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        seen = [json.loads(read_line(process.stdout, DEADLINE)) for _ in range(8)]
        process.send_signal(number)
        assert process.wait(DEADLINE) == (0 if number == signal.SIGINT else -number)
        assert process.stderr.read() == ""
    assert 0 < seen[-1]["batches"] <= 10
    assert seen[-1]["batches"] > seen[0]["batches"]


def test_monitor_ends_when_nobody_reads_it(fleet: Fleet, tmp_path: Path) -> None:
    """As `feedmill monitor … | head -1` does."""
    line = ("monitor", fleet["two"], "--stream", "pictures", "--every", "0.1")
    with subprocess.Popen(
        command(*line), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(tmp_path)
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "samples/s" in read_line(process.stdout, DEADLINE)
        process.stdout.close()
        assert process.wait(DEADLINE) == 141
        assert process.stderr.read() == ""


def test_a_full_disk_under_the_output_is_one_line(tmp_path: Path) -> None:
    """As of `feedmill … >> log`."""
    shard = write_tar(tmp_path / "a.tar", [("0", {"cls": b"1"})])
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command("shards", "info", shard),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "feedmill: the output cannot be written: No space left on device; make room\n"


def test_monitor_at_a_terminal_refreshes_in_place(fleet: Fleet, tmp_path: Path) -> None:
    """The second table is written over the first; Ctrl-C ends it well."""
    master, slave = os.openpty()
    line = ("monitor", fleet["two"], "--stream", "pictures", "--every", "0.2")
    shown = b""

    def refreshed() -> bool:
        nonlocal shown
        shown += os.read(master, 4096)
        return shown.count(b"since the start") >= 3

    with subprocess.Popen(command(*line), stdout=slave, stderr=subprocess.PIPE, env=environment(tmp_path)) as process:
        os.close(slave)
        wait_until(refreshed, DEADLINE, "three tables are shown")
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
    os.close(master)
    assert b"\x1b[4F\x1b[J" in shown


def test_show_draws_the_right_pictures_with_the_right_labels(tool: Run, fleet: Fleet, tmp_path: Path) -> None:
    """Colours tell which picture is which; the sheet has them in their order, enlarged, with a caption."""
    (tmp_path / "names.txt").write_text("zero\none\n")
    url = fleet["two"]
    text = said(
        tool(
            "show",
            url,
            "--stream",
            "colours",
            "--no-shuffle",
            "--count",
            "6",
            "--columns",
            "3",
            "--classes",
            "names.txt",
        )
    )
    assert text == "feedmill-show.png: 6 pictures of png with cls\n"
    with Image.open(tmp_path / "feedmill-show.png") as sheet:
        side, cell = 128, (128 + 8, 128 + 8 + 19)  # 32 pixels, four times as large; 19 for the caption
        centres = [(8 + n % 3 * cell[0] + side // 2, 8 + n // 3 * cell[1] + side // 2) for n in range(6)]
        assert [sheet.getpixel(centre) for centre in centres] == [(n, 255 - n, n // 2) for n in range(6)]
        caption = sheet.crop((8, 8 + side, 8 + side, 8 + side + 19)).convert("L")
        assert caption.getextrema() != (255, 255)


def test_show_draws_in_the_terminal(tool: Run, fleet: Fleet) -> None:
    """Pictures that travel as bytes and are normalised on arrival are shown as they were."""
    url = fleet["two"]
    text = said(tool("show", url, "--stream", "pictures-eval", "--terminal", "--count", "2", "--columns", "2"))
    assert text.count("▀") > 1000
    assert text.splitlines()[-1].startswith("2 pictures of ")


def test_stat_tells_what_a_trainer_gets(tool: Run, fleet: Fleet, tmp_path: Path) -> None:
    """The numbers of the same feed, computed at once."""
    url = fleet["two"]
    text = said(tool("stat", url, "--stream", "pictures", "--batches", "3", "--json", "-o", "h.svg"))
    report = json.loads(text)
    with feedmill.connect(url, "pictures", order="arrival", prefetch=1) as feed:
        batches = [batch.tensors for _, batch in zip(range(3), feed.batches(), strict=False)]
    assert (report["batches"], report["samples"]) == (3, 48)
    for n, field in enumerate(report["fields"]):
        whole = np.concatenate([tensors[n].double().numpy() for tensors in batches])
        assert field["name"] == feed.fields[n].name
        assert (field["count"], field["min"], field["max"]) == (whole.size, whole.min(), whole.max())
        assert field["mean"] == pytest.approx(whole.mean(), rel=1e-9)
        assert field["std"] == pytest.approx(whole.std(), rel=1e-9)
        assert sum(field["histogram"]["counts"]) == whole.size
    assert (tmp_path / "h.svg").read_text().startswith("<svg ")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("monitor", "http://a:1"), "'http://a:1': expected tcp://HOST:PORT or ipc://PATH"),
        (("monitor", "tcp://127.0.0.1:9", "--timeout", "0.3"), "no server made progress for 0.3 s"),
        (("monitor", "tcp://127.0.0.1:9", "--every", "0"), "--every=0.0: expected a positive number of seconds"),
        (("monitor", "tcp://127.0.0.1:9", "--seconds", "inf"), "--seconds=inf: expected a positive number of seconds"),
        (("monitor", "tcp://127.0.0.1:9", "--limit", "nan"), "--limit nan: expected more than 0, and one batch a day"),
        (("monitor", "zsub://127.0.0.1:9", "--timeout", "0.3"), "zsub://127.0.0.1:9: nothing came for 0.3 s"),
        (
            ("monitor", "zpub://127.0.0.1:9", "--timeout", "0.3"),
            "zpub://127.0.0.1:9 is where batches are sent; to look at them",
        ),
        (("monitor", "zsub://127.0.0.1:9", "tcp://127.0.0.1:9"), "look at them one by one"),
        (("stat", "zsub://127.0.0.1:9", "--stream", "x"), "--stream x: tensorcom's sockets have no streams"),
        (("show", "zsub://127.0.0.1:9", "--seed", "0"), "--seed 0: tensorcom's sockets have no seed; leave it out"),
        (("show", "zsub://127.0.0.1:9", "--no-shuffle"), "--no-shuffle: tensorcom's sockets have no order of their"),
        (("bench", "tcp://127.0.0.1:9", "--timeout", "0.3"), "no server made progress for 0.3 s"),
        (("show", "ipc://nothing", "--timeout", "0.3"), "no server made progress for 0.3 s"),
        (("show", "tcp://127.0.0.1:9", "--classes", "none.txt"), "--classes none.txt: No such file or directory"),
        (("show", "tcp://127.0.0.1:9", "--columns", "-1"), "--columns -1 and --count"),
        (("show", "tcp://127.0.0.1:9", "--columns", "0"), "--columns 0 and --count"),
        (("show", "tcp://127.0.0.1:9", "--count", "0"), "--columns 8 and --count 0: show 1 at least"),
        (("stat", "tcp://127.0.0.1:9", "--timeout", "0.3"), "no server made progress for 0.3 s"),
        (("stat", "tcp://127.0.0.1:9", "--batches", "0"), "--batches 0: look at 1 at least"),
        (("stat", "tcp://127.0.0.1:9", "-o", "h.pdf"), "h.pdf; name it .svg or .png"),
        (("shards", "info", "none.tar"), "shard none.tar: No such file or directory"),
        (("shards", "cat", "a.tar", "-n", "0"), "-n 0: ask for 1 sample at least"),
        (("shards", "cat", "a.tar", "--raw"), "--raw writes one field, and --fields (all) names 0; name one"),
        (("shards", "cat", "a.tar", "--raw", "--fields", "txt"), "sample 0 of a.tar has no member txt, only cls"),
        (("shards", "extract", "bad.tar", "-d", "out"), "member ../0.cls would be written outside out"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(tool: Run, tmp_path: Path, args: tuple[str, ...], says: str) -> None:
    """Exit code 2, and one line that names the thing."""
    write_tar(tmp_path / "a.tar", [("0", {"cls": b"1"})])
    write_tar(tmp_path / "bad.tar", [("../0", {"cls": b"1"})])
    done = tool(*args)
    assert (done.code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("feedmill: ")
    assert says in line


def test_a_window_needs_a_desktop(tool: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would come up nowhere is refused at once."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    done = tool("show", "tcp://127.0.0.1:9", "--window")
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr.startswith("feedmill: --window: there is no desktop")


def test_a_window_is_the_pictures_viewer(
    tool: Run, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sheet is handed to it; where there is none, that is said."""
    shown: list[Image.Image] = []

    class Viewer(ImageShow.Viewer):
        def show(self, image: Image.Image, **_: object) -> int:
            shown.append(image)
            return 1

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(ImageShow, "_viewers", [Viewer()])
    line = ("show", fleet["two"], "--stream", "colours", "--count", "2", "--window")
    assert said(tool(*line)) == ""
    assert [sheet.size for sheet in shown] == [(2 * (128 + 8) + 8, 128 + 19 + 2 * 8)]
    monkeypatch.setattr(ImageShow, "_viewers", [])
    assert "no program to view pictures" in tool(*line).stderr


def test_show_of_a_stream_without_pictures_says_so(tool: Run, fleet: Fleet) -> None:
    """And names what there is."""
    done = tool("show", fleet["two"], "--stream", "slow")
    assert done.code == 2
    assert "the batch has no pictures, only cls torch.float64 [32, 202]; see its numbers with" in done.stderr


def test_shards_info_tells_what_shards_hold(tool: Run, data: Data, tmp_path: Path) -> None:
    """Samples, members and keys; the index is made once; a damaged shard does not hide the others."""
    shards = data["pictures"].shards
    (tmp_path / "cut.tar").write_bytes(shards[0].read_bytes()[:5000])
    done = tool("shards", "info", "--json", "--cache", "cache", *shards, "cut.tar")
    assert (done.code, done.stderr) == (2, "")
    *sound, cut = map(json.loads, done.stdout.splitlines())
    assert [report["samples"] for report in sound] == [40, 40, 40]
    assert {(report["index"], *report["problems"]) for report in sound} == {("made now",)}
    assert [found["extension"] for found in sound[0]["members"]] == ["jpg", "cls"]
    assert cut["problems"][0].startswith("truncated: ")
    again = tool("shards", "info", "--cache", "cache", *shards, "cut.tar")
    assert again.stdout.count("index    stored in cache/indexes/") == 3
    assert again.stdout.splitlines()[-1].startswith("4 shards, 1 of them cannot be read: 120 samples in ")


def test_shards_cat_prints_a_line_for_each_sample(tool: Run, tmp_path: Path) -> None:
    """Of all shards, those that are asked for; raw bytes go through as they are."""
    for shard in "ab":
        write_tar(tmp_path / f"{shard}.tar", [(f"{shard}{n}", {"cls": b"%d" % n, "txt": b"\x1b"}) for n in range(3)])
    assert said(tool("shards", "cat", "{a,b}.tar", "--fields", "cls")) == "".join(
        f"{shard}{n}  cls: {n}\n" for shard in "ab" for n in range(3)
    )
    assert said(tool("shards", "cat", "{a,b}.tar", "--where", "b", "-n", "1")) == "b0  cls: 0  txt: '\\x1b'\n"
    assert said(tool("shards", "cat", "{a,b}.tar", "--raw", "--fields", "cls", "--where", "a")) == "012"
    long = "folder/" * 20
    write_tar(tmp_path / "long.tar", [(f"{long}{n}", {"cls": b"7"}) for n in range(2)])
    assert said(tool("shards", "cat", "long.tar")) == f"{long}0  cls: 7\n{long}1  cls: 7\n"


def test_shards_extract_writes_files(tool: Run, tmp_path: Path) -> None:
    """A folder that is made; an error line holds nothing that a terminal obeys."""
    write_tar(tmp_path / "a.tar", [("x/0", {"cls": b"1", "txt": b"one"}), ("x/1", {"cls": b"2"})])
    assert said(tool("shards", "extract", "a.tar", "-d", "out/deep")) == "2 samples, 5 bytes, in out/deep\n"
    assert (tmp_path / "out/deep/x/0.txt").read_bytes() == b"one"
    (tmp_path / "odd.tar").write_bytes(tar_bytes([("\x1b[2J/0.cls", b"1")]))
    said(tool("shards", "extract", "odd.tar", "-d", "out"))
    done = tool("shards", "extract", "odd.tar", "-d", "out")
    assert done.stderr == "feedmill: out/\\x1b[2J/0.cls exists; --force replaces it\n"
