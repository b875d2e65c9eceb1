import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from feedmill_protocol import limits
from feedmill_protocol.errors import UsageError
from feedmill_server.config import ServerConfig, StreamConfig
from feedmill_server.inflate import INFLATED_BYTES

STREAM = {"shards": ["a.tar"], "preset": "imagenet-train"}


def merge(
    options: Mapping[str, Any] | None = None,
    stream: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> ServerConfig:
    """Merge with a stream that can be served, unless another is given."""
    return ServerConfig.merge(options or {}, STREAM if stream is None else stream, environ or {})


def toml(folder: Path, text: str) -> dict[str, str]:
    """Return the options that name a TOML file with this text."""
    path = folder / "server.toml"
    path.write_text(text, encoding="utf-8")
    return {"config": str(path)}


# Where values come from.


def test_defaults_are_filled_in_for_this_machine() -> None:
    """All cores, the host's name, loopback; the stream is called train."""
    assert merge() == ServerConfig(
        bind="tcp://127.0.0.1:7880",
        workers=len(os.sched_getaffinity(0)),
        memory=2**30,
        cache="",
        cache_bytes=INFLATED_BYTES,
        name=socket.gethostname()[:64],
        insecure=False,
        streams={"train": StreamConfig(shards=("a.tar",), preset="imagenet-train")},
    )


def test_the_command_line_overrides_the_environment_overrides_the_file(tmp_path: Path) -> None:
    """Value by value."""
    text = """
        bind = "tcp://127.0.0.1:1"
        workers = 1
        memory = "1MB"
        cache_bytes = 1000
        name = "ours"
    """
    options = toml(tmp_path, text) | {"workers": "3", "bind": None}
    config = merge(options, environ={"FEEDMILL_WORKERS": "2", "FEEDMILL_MEMORY": "2MB", "HOME": "/", "X_BIND": "no"})
    found = (config.bind, config.workers, config.memory, config.cache_bytes, config.name)
    assert found == ("tcp://127.0.0.1:1", 3, 2_000_000, 1000, "ours")


def test_a_stream_is_merged_from_all_sources_too(tmp_path: Path) -> None:
    """The command line speaks of one stream, which may be one of the file's."""
    options = toml(
        tmp_path,
        """
        [streams.train]
        shards = ["/data/a.tar"]
        preset = "imagenet-train"
        batch_size = 1
        [streams.val]
        shards = "/data/v.tar"
        preset = "imagenet-eval"
        batch_size = 7
        """,
    )
    environ = {"FEEDMILL_BATCH_SIZE": "2", "FEEDMILL_SHARDS": "b.tar c.tar"}
    config = merge(options, {"batch_size": "3"}, environ)
    assert dict(config.streams) == {
        "train": StreamConfig(shards=("b.tar", "c.tar"), preset="imagenet-train", batch_size=3),
        "val": StreamConfig(shards=("/data/v.tar",), preset="imagenet-eval", batch_size=7),
    }
    named = merge(options, {"name": "val", "batch_size": "9"})
    assert (named.streams["train"].batch_size, named.streams["val"].batch_size) == (1, 9)
    renamed = merge(options, {}, {"FEEDMILL_STREAM": "val", "FEEDMILL_BATCH_SIZE": "8"})
    assert (renamed.streams["train"].batch_size, renamed.streams["val"].batch_size) == (1, 8)


def test_a_variable_that_means_nothing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """With the one that may be meant; Kubernetes sets others, so it is no error."""
    merge(
        {},
        STREAM,
        {"FEEDMILL_WORKER": "3", "FEEDMILL_STREAMS": "a", "FEEDMILL_PORT_7880_TCP": "x", "FEEDMILL_NAME": "n"},
    )
    assert [record.getMessage() for record in caplog.records] == [
        "FEEDMILL_PORT_7880_TCP in the environment has no meaning",
        "FEEDMILL_STREAMS in the environment has no meaning; is it FEEDMILL_STREAM?",
        "FEEDMILL_WORKER in the environment has no meaning; is it FEEDMILL_WORKERS?",
    ]


def test_the_environment_alone_can_say_everything(tmp_path: Path) -> None:
    """As in a container; it may name the file, too."""
    environ = {"FEEDMILL_SHARDS": "a.tar", "FEEDMILL_PIPELINE": "p.py:P", "FEEDMILL_STREAM": "val"}
    config = merge({}, {}, environ | {"FEEDMILL_INSECURE": "yes", "FEEDMILL_BIND": "tcp://*:7880"})
    assert dict(config.streams) == {"val": StreamConfig(shards=("a.tar",), pipeline="p.py:P")}
    assert (config.bind, config.insecure) == ("tcp://*:7880", True)
    path = toml(tmp_path, "workers = 5")["config"]
    assert merge({}, STREAM, {"FEEDMILL_CONFIG": path}).workers == 5


def test_paths_in_a_file_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it means the same from everywhere; absolute ones and modules stay what they are."""
    monkeypatch.setenv("HOME", "/home/someone")
    options = toml(
        tmp_path,
        """
        cache = "cached"
        [streams.a]
        shards = ["data/a-{0..3}.tar", "/data/b.tar", "~/c.tar"]
        pipeline = "pipes/p.py:P"
        [streams.b]
        shards = "b.tar"
        pipeline = "pipes.p:P"
        [streams.c]
        dir = "pictures"
        pipeline = "baked.json"
        """,
    )
    config = merge(options, {})
    assert config.cache == f"{tmp_path}/cached"
    assert dict(config.streams) == {
        "a": StreamConfig(
            shards=(f"{tmp_path}/data/a-{{0..3}}.tar", "/data/b.tar", "/home/someone/c.tar"),
            pipeline=f"{tmp_path}/pipes/p.py:P",
        ),
        "b": StreamConfig(shards=(f"{tmp_path}/b.tar",), pipeline="pipes.p:P"),
        "c": StreamConfig(dir=f"{tmp_path}/pictures", pipeline=f"{tmp_path}/baked.json"),
    }
    assert merge({"cache": "cached"}).cache == "cached"
    assert merge(toml(tmp_path, 'cache = ""')).cache == ""


def test_a_folder_instead_of_shards_may_be_said_anywhere(tmp_path: Path) -> None:
    """Who says the one does not mean the other, where that was said with less weight."""
    options = toml(tmp_path, "[streams.train]\ndir = '/data/file'\npreset = 'imagenet-train'")
    assert merge(options, {}).streams["train"].dir == "/data/file"
    for said, environ in (({}, {"FEEDMILL_DIR": "here"}), ({"dir": "here"}, {"FEEDMILL_DIR": "there"})):
        stream = merge(options, said, environ).streams["train"]
        assert (stream.dir, stream.shards) == ("here", ())
    stream = merge(options, {"shards": ["a.tar"]}, {"FEEDMILL_DIR": "there"}).streams["train"]
    assert (stream.dir, stream.shards) == ("", ("a.tar",))
    stream = merge({}, {"dir": "here", "preset": "imagenet-eval"}, {"FEEDMILL_SHARDS": "a.tar"}).streams["train"]
    assert (stream.dir, stream.shards) == ("here", ())


# What values may be.


@pytest.mark.parametrize(
    ("size", "nbytes"),
    [
        (5, 5),
        ("5", 5),
        ("5B", 5),
        ("2K", 2000),
        ("2kb", 2000),
        ("2KiB", 2048),
        ("512 MiB", 512 * 2**20),
        ("1.5G", 1_500_000_000),
        ("2GB", 2_000_000_000),
        (" 1gi ", 2**30),
        ("1T", 10**12),
        ("1TiB", 2**40),
        (1e9, 10**9),
    ],
)
def test_sizes_are_written_as_people_write_them(size: float | str, nbytes: int) -> None:
    """A small i makes it 1024."""
    assert merge({"memory": size, "cache_bytes": size}).memory == nbytes


@pytest.mark.parametrize(("value", "seconds"), [("0.5", 0.5), ("60", 60.0), (7, 7.0), (1.5, 1.5), ("86400", 86400.0)])
def test_a_time_is_a_number_of_seconds(value: object, seconds: float) -> None:
    """However it is given."""
    assert merge({"sample_timeout": value}).sample_timeout == seconds


@pytest.mark.parametrize("value", ["0", "-1", "soon", "", "nan", "inf", "86401", True, []])
def test_a_time_must_come(value: object) -> None:
    """Neither at once nor never."""
    with pytest.raises(UsageError) as caught:
        merge({"sample_timeout": value})
    assert str(caught.value) == (
        f"sample_timeout={value!r}: expected a number of seconds, more than 0 and at most 86,400"
    )


def test_a_worker_may_have_a_limit() -> None:
    """None unless it is given; one that not even an image fits in is a mistake."""
    assert merge().worker_memory is None
    assert merge({"worker_memory": "2GB"}).worker_memory == 2_000_000_000
    with pytest.raises(UsageError, match=r"^worker_memory='2MB': expected 64MiB or more; leave it out for no limit$"):
        merge({"worker_memory": "2MB"})


@pytest.mark.parametrize(
    ("value", "expected"), [("1", True), ("true", True), ("YES", True), (True, True), ("0", False), ("", False)]
)
def test_flags_are_words_or_booleans(value: str | bool, expected: bool) -> None:  # noqa: FBT001
    """As environments have them, and as TOML has them."""
    assert merge({"insecure": value}).insecure is expected


@pytest.mark.parametrize(
    "bind",
    [
        "tcp://127.0.0.1:7880",
        "tcp://127.9.9.9:*",
        "tcp://localhost:1",
        "tcp://[::1]:65535",
        "ipc:///run/feedmill.sock",
        "ipc://@abstract",
    ],
)
def test_this_machine_may_always_connect(bind: str) -> None:
    """Loopback and files need no permission."""
    assert merge({"bind": bind}).bind == bind


@pytest.mark.parametrize(
    "bind",
    [
        "tcp://0.0.0.0:7880",
        "tcp://*:7880",
        "tcp://[::]:7880",
        "tcp://10.0.0.1:*",
        "tcp://eth0:7880",
        "tcp://host.lan:1",
    ],
)
def test_others_may_connect_only_if_that_was_said(bind: str) -> None:
    """The refusal names the address, what it would mean, and all remedies."""
    assert merge({"bind": bind, "insecure": True}).bind == bind
    assert merge({"bind": bind, "keys": "folder"}).bind == bind
    with pytest.raises(UsageError) as caught:
        merge({"bind": bind})
    assert str(caught.value) == (
        f"bind={bind!r}: anybody who reaches this address could use the server; "
        "listen on 127.0.0.1, give --keys ('feedmill keygen' makes some), or say --insecure on a network that you trust"
    )


def test_guests_without_keys_are_an_error(tmp_path: Path) -> None:
    """There would be nobody to refuse."""
    with pytest.raises(UsageError, match=r"^authorized_clients='a': without keys there is no telling who comes; "):
        merge({"authorized_clients": "a"})
    text = "keys = 'k'\nauthorized_clients = '/a'"
    config = merge(toml(tmp_path, text))
    assert (config.keys, config.authorized_clients) == (str(tmp_path / "k"), "/a")


@pytest.mark.parametrize(
    "bind", ["", "7880", "tcp://127.0.0.1", "tcp://:7880", "tcp://h:x", "udp://127.0.0.1:1", "ipc://"]
)
def test_what_is_no_address_is_an_error(bind: str) -> None:
    """The error shows how one is written."""
    with pytest.raises(UsageError, match=r"^bind='.*': expected tcp://ADDRESS:PORT or ipc://PATH, for example tcp://"):
        merge({"bind": bind, "insecure": True})


@pytest.mark.parametrize("port", ["0", "65536", "99999999"])
def test_ports_have_bounds(port: str) -> None:
    """The error says which."""
    with pytest.raises(UsageError, match=rf"^bind='tcp://127.0.0.1:{port}': expected a port in 1..65535, or \*$"):
        merge({"bind": f"tcp://127.0.0.1:{port}"})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"workers": "many"}, "^workers='many': expected an integer in 0..4096$"),
        ({"workers": -1}, "^workers=-1: expected an integer in 0..4096$"),
        ({"workers": 5000}, "^workers=5000"),
        ({"workers": 1.5}, "^workers=1.5"),
        ({"workers": True}, "^workers=True"),
        ({"memory": "lots"}, "^memory='lots': expected a size like 512MiB or 2GB$"),
        ({"memory": -1}, "^memory=-1"),
        ({"memory": True}, "^memory=True"),
        ({"cache_bytes": "1XB"}, "^cache_bytes='1XB'"),
        ({"insecure": "maybe"}, "^insecure='maybe': expected true or false$"),
        ({"insecure": 1}, "^insecure=1: expected true or false$"),
        ({"bind": 7880}, "^bind=7880: expected a string$"),
        ({"name": "n" * (limits.NAME_BYTES + 1)}, "^name='n+': a name has at most 128 bytes$"),
    ],
)
def test_a_value_that_cannot_be_is_an_error(options: dict[str, Any], says: str) -> None:
    """It names the key, the value, and what is expected."""
    with pytest.raises(UsageError, match=says):
        merge(options)


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        ({}, "^nothing to serve: give SHARDS or --dir, and --preset or --pipeline, or --config FILE.toml$"),
        ({"preset": "imagenet-train"}, "^stream train has no shards; give SHARDS, or a folder of pictures with --dir$"),
        ({**STREAM, "dir": "d"}, "^stream train has shards and a dir='d'; give one of them, or two streams$"),
        ({"shards": ["a"]}, r"^stream train needs either a pipeline \(FILE.py:NAME\) or a preset, and not both$"),
        ({**STREAM, "pipeline": "a:b"}, "^stream train needs either .* and not both$"),
        (
            {"shards": ["a"], "preset": "coco"},
            "^stream train: there is no preset 'coco'; presets are imagenet-train, imagenet-eval$",
        ),
        ({**STREAM, "batch_size": "0"}, "^batch_size='0': expected an integer in 1..65536$"),
        ({**STREAM, "name": "n" * 129}, "^stream 'n+': a name has 1 to 128 bytes$"),
    ],
)
def test_a_stream_that_cannot_be_served_is_an_error(stream: dict[str, Any], says: str) -> None:
    """It names the stream and what is missing."""
    with pytest.raises(UsageError, match=says):
        merge({}, stream)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("wokers = 3", r"there is no option 'wokers'; options are authorized_clients, bind, cache, .*, workers$"),
        ("streams = 3", r"streams must be tables, like \[streams.train\]$"),
        ("[streams]\ntrain = 3", "streams.train must be a table$"),
        ("[streams.a]\nshard = 'x'", r", \[streams.a\]: there is no option 'shard'; options are batch_size, "),
        ("bind = ", "not TOML: "),
        ("[streams.a]\nshards = 5", "^stream a: shards must be a list of strings$"),
        ("[streams.a]\nshards = ['a', 5]", "^stream a: shards must be a list of strings$"),
        ("[streams.a]\nshards = {a = 'b'}", "^stream a: shards must be a list of strings$"),
        ("[streams.a]\nshards = ['a']\npipeline = ['p.py:P']", r"^pipeline=\['p.py:P'\]: expected a string$"),
        ("[streams.a]\nshards = ['a']\npreset = 5", "^preset=5: expected a string$"),
        ("[streams.'']\nshards = ['a']\npreset = 'imagenet-eval'", "^stream '': a name has 1 to 128 bytes$"),
        ("cache = 5\n[streams.a]\nshards = ['a']\npreset = 'imagenet-eval'", "^cache=5: expected a string$"),
        ("[streams.a]\ndir = 5\npreset = 'imagenet-eval'", "^dir=5: expected a string$"),
        ("config = 'other.toml'", "there is no option 'config'"),
    ],
)
def test_a_file_that_is_wrong_is_an_error(tmp_path: Path, text: str, says: str) -> None:
    """Unknown keys above all."""
    with pytest.raises(UsageError, match=says):
        merge(toml(tmp_path, text), {})


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """It names the path and the reason."""
    with pytest.raises(UsageError, match=r"^configuration \S+/none.toml: No such file or directory$"):
        merge({"config": str(tmp_path / "none.toml")})
    (tmp_path / "bytes.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(UsageError, match=r"bytes.toml: not TOML: "):
        merge({"config": str(tmp_path / "bytes.toml")})


def test_a_page_may_be_asked_for_everywhere(tmp_path: Path) -> None:
    """A port is a number in a file; nothing listens unless it was asked for."""
    assert merge().http == ""
    assert merge(toml(tmp_path, "http = 9880")).http == "9880"
    assert merge(toml(tmp_path, "http = 9880"), environ={"FEEDMILL_HTTP": "*"}).http == "*"
    assert merge({"http": "[::1]:1"}, environ={"FEEDMILL_HTTP": "2"}).http == "[::1]:1"
    assert merge({"http": "0.0.0.0:9880", "insecure": True}).http == "0.0.0.0:9880"


@pytest.mark.parametrize("http", ["true", "1.5", '"x"', '"10.0.0.1:9880"'])
def test_a_page_that_cannot_or_should_not_be_is_refused(tmp_path: Path, http: str) -> None:
    """Keys do not help: a browser has none."""
    with pytest.raises(UsageError, match=r"^http="):
        merge(toml(tmp_path, f'http = {http}\nkeys = "keys"'))
