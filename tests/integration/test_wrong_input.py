"""What `feedmill serve` cannot serve: exit code 2, and one line that names the thing and the remedy."""

import re
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration.fleet import PIPELINES, Fleet
from integration.processes import command, environment
from shardmaker import write_tar

DEADLINE = 30.0
"""Seconds: ten times what the slowest of these takes."""
LOG_LINE = re.compile(r"\d\d:\d\d:\d\d (DEBUG|INFO|WARNING|ERROR) ")
PRESET = ("--preset", "imagenet-train")
NUMBERS = ("--pipeline", f"{PIPELINES}:DRAWS")


@dataclass(frozen=True)
class Refused:
    """What a command said that served nothing."""

    code: int
    stdout: str
    line: str
    """The one line that begins with "feedmill: "."""


@pytest.fixture
def refuse(tmp_path: Path) -> Callable[..., Refused]:
    """Run ``feedmill serve``, which must end by itself and say one thing."""

    def run(*args: str | Path, **env: str) -> Refused:
        done = subprocess.run(
            command("serve", "--bind", "tcp://127.0.0.1:*", *args),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            env=environment(tmp_path, env),
            cwd=tmp_path,
            check=False,
        )
        assert "Traceback" not in done.stderr
        said = [line for line in done.stderr.splitlines() if not LOG_LINE.match(line)]
        assert len(said) == 1, done.stderr
        assert said[0].startswith("feedmill: "), done.stderr
        assert "ready" not in done.stdout
        return Refused(done.returncode, done.stdout, said[0])

    return run


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """Return a sound shard."""
    return write_tar(tmp_path / "numbers.tar", [(f"{n:02d}", {"cls": b"%d" % n}) for n in range(20)])


def test_a_shard_that_does_not_exist_is_named(refuse: Callable[..., Refused]) -> None:
    """No such file."""
    refused = refuse("train-{000..002}.tar", *PRESET)
    assert refused.code == 2
    assert "train-000.tar: No such file or directory" in refused.line
    assert "check its path" in refused.line


def test_a_glob_that_matches_nothing_is_named(refuse: Callable[..., Refused]) -> None:
    """No file matches."""
    refused = refuse("train-*.tar", *PRESET)
    assert refused.code == 2
    assert "no file matches 'train-*.tar'" in refused.line


def test_a_pipeline_whose_process_is_killed_is_told_apart_from_one_that_raises(
    refuse: Callable[..., Refused], tmp_path: Path, numbers: Path
) -> None:
    """As the kernel does in a container whose memory does not suffice for the imports: nobody has last words."""
    (tmp_path / "killed.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    refused = refuse(numbers, "--pipeline", "killed.py:TRAIN")
    assert refused.code == 2
    assert (
        "the process that loads the pipelines was killed, which the kernel does where memory is short" in refused.line
    )


def test_a_shard_that_is_no_tar_is_named(refuse: Callable[..., Refused], tmp_path: Path) -> None:
    """Something else has the name of a shard."""
    (tmp_path / "photo.tar").write_bytes(b"\xff\xd8\xff\xe0" * 1000)
    refused = refuse("photo.tar", *PRESET)
    assert refused.code == 2
    assert "shard photo.tar" in refused.line
    assert "tar" in refused.line.partition("shard photo.tar")[2]


@pytest.mark.parametrize("gzip", [False, True], ids=["tar", "gzip"])
def test_a_truncated_shard_is_named(
    refuse: Callable[..., Refused],
    tmp_path: Path,
    gzip: bool,  # noqa: FBT001 # a parameter of the test
) -> None:
    """Truncation is an error, never a shorter epoch."""
    whole = write_tar(tmp_path / "whole", [(f"{n:02d}", {"cls": b"%d" % n}) for n in range(20)], gzip=gzip)
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[: -20 if gzip else 700])
    refused = refuse("cut.tar", *NUMBERS)
    assert refused.code == 2
    assert "shard cut.tar" in refused.line
    assert "truncated" in refused.line


def test_a_field_that_no_sample_has_is_named_with_those_that_there_are(
    refuse: Callable[..., Refused], numbers: Path
) -> None:
    """The pipeline asks for images; the samples have none."""
    refused = refuse(numbers, *PRESET)
    assert refused.code == 2
    assert "'ppm;png;jpg;jpeg'" in refused.line
    assert "the samples have cls" in refused.line


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import os\nraise RuntimeError('two\\nlines')\n", "RuntimeError: two lines (mine.py, line 2)"),
        ("import sys\nsys.exit(1)\n", "SystemExit"),
        ("import no_such_library\n", "No module named 'no_such_library'"),
        ("from feedmill_server import Pipeline\nQ = Pipeline('cls')\n", "P does not exist; pipelines there: Q"),
        ("P = 'a string'\n", "P is a str, not a Pipeline"),
    ],
    ids=["raises", "exits", "import", "name", "type"],
)
def test_a_pipeline_file_that_does_not_work_is_named(
    refuse: Callable[..., Refused], numbers: Path, tmp_path: Path, source: str, said: str
) -> None:
    """The line says which file, and what is wrong with it."""
    (tmp_path / "mine.py").write_text(source)
    refused = refuse(numbers, "--pipeline", "mine.py:P")
    assert refused.code == 2
    assert "pipeline mine.py:P" in refused.line
    assert said in refused.line


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def t(x):\n    import os\n    os._exit(3)", "ended the worker process"),
        ("def t(x):\n    return 'seven'", "ends as str, which cannot be batched"),
    ],
    ids=["exits", "text"],
)
def test_a_transform_that_fails_on_the_first_samples_is_refused_at_start(
    refuse: Callable[..., Refused], numbers: Path, tmp_path: Path, source: str, said: str
) -> None:
    """Better now than in the first batch."""
    (tmp_path / "mine.py").write_text(
        f"from feedmill_server import Pipeline\n{source}\nP = Pipeline('cls', transforms=[t])\n"
    )
    refused = refuse(numbers, "--pipeline", "mine.py:P")
    assert refused.code == 2
    assert "numbers.tar" in refused.line
    assert said in refused.line


def test_a_pipeline_file_that_does_not_exist_is_named(refuse: Callable[..., Refused], numbers: Path) -> None:
    """No such file."""
    refused = refuse(numbers, "--pipeline", "absent.py:P")
    assert refused.code == 2
    assert "absent.py" in refused.line


def test_a_port_in_use_is_named_with_the_option_to_choose_another(
    refuse: Callable[..., Refused], numbers: Path
) -> None:
    """Two servers on one port is the commonest mistake of all."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        refused = refuse(numbers, *NUMBERS, "--bind", url)
    assert refused.code == 2
    assert f"cannot listen on {url}: Address already in use" in refused.line
    assert "--bind" in refused.line


def test_an_ipc_path_in_use_is_not_taken_from_its_server(
    refuse: Callable[..., Refused], numbers: Path, fleet: Fleet
) -> None:
    """What libzmq would do is bind all the same, and leave the other server without clients."""
    refused = refuse(numbers, *NUMBERS, "--bind", fleet["ipc"])
    assert refused.code == 2
    assert f"cannot listen on {fleet['ipc']}: Address already in use" in refused.line


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((*NUMBERS, "--batch-size", "0"), "batch_size='0': expected an integer in 1..65536"),
        ((*NUMBERS, "--batch-size", "many"), "batch_size='many'"),
        ((*NUMBERS, "--batch-size", "65537"), "batch_size='65537'"),
        ((*NUMBERS, "--workers", "-1"), "workers='-1'"),
        ((*NUMBERS, "--memory", "lots"), "memory='lots': expected a size like 512MiB"),
        ((*NUMBERS, "--memory", "0"), "memory=0: a batch of stream train takes"),
        ((*NUMBERS, "--bind", "tcp://0.0.0.0:*"), "--insecure"),
        ((*NUMBERS, "--bind", "tcp://*:7880"), "--insecure"),
        ((*NUMBERS, "--bind", "tcp://[::]:7880"), "--insecure"),
        ((*NUMBERS, "--bind", "udp://127.0.0.1:7880"), "expected tcp://ADDRESS:PORT or ipc://PATH"),
        ((*NUMBERS, "--bind", "tcp://127.0.0.1"), "expected tcp://ADDRESS:PORT"),
        ((*NUMBERS, "--bind", "tcp://127.0.0.1:99999"), "expected a port in 1..65535"),
        ((*NUMBERS, "--bind", "ipc:///no/such/folder/socket"), "cannot listen on ipc:///no/such/folder/socket"),
        ((*NUMBERS, "--bind", "ipc:///" + "x" * 200), "is longer than"),
        ((), "needs either a pipeline (FILE.py:NAME) or a preset"),
        ((*NUMBERS, *PRESET), "needs either a pipeline (FILE.py:NAME) or a preset"),
        (("--preset", "imagenet"), "presets are imagenet-train, imagenet-eval"),
        ((*NUMBERS, "--stream", "x" * 200), "a name has 1 to 128 bytes"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value[-2:])[-30:] or "neither",
)
def test_an_option_that_cannot_work_is_named_with_what_would(
    refuse: Callable[..., Refused], numbers: Path, args: tuple[str, ...], said: str
) -> None:
    """Values are checked before anything is started."""
    refused = refuse(numbers, *args)
    assert refused.code == 2
    assert said in refused.line


def test_nothing_to_serve_says_what_to_give(refuse: Callable[..., Refused]) -> None:
    """The bare command explains itself."""
    refused = refuse()
    assert refused.code == 2
    assert "nothing to serve: give SHARDS" in refused.line


def test_the_same_shard_twice_is_refused(refuse: Callable[..., Refused], numbers: Path) -> None:
    """An epoch has every sample once."""
    refused = refuse(numbers, numbers, *NUMBERS)
    assert refused.code == 2
    assert "given 2 times" in refused.line


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("batchsize = 3", "there is no option 'batchsize'; options are authorized_clients, bind"),
        ("[streams.train]\nshard = 'a.tar'", "[streams.train]: there is no option 'shard'; options are batch_size"),
        ("[streams]\ntrain = 3", "streams.train must be a table"),
        ("streams = 3", "streams must be tables"),
        ("name = 3", "name=3: expected a string"),
        ("workers = true", "workers=True: expected an integer"),
        ("[streams.train]\npreset = 'imagenet-train'", "stream train has no shards"),
        ("[streams.train]\nshards = [3]\npreset = 'imagenet-train'", "shards must be a list of strings"),
        ("this is no toml", "not TOML"),
    ],
    ids=["server", "stream", "table", "tables", "string", "integer", "shards", "shard", "syntax"],
)
def test_a_configuration_that_cannot_work_is_named_with_what_would(
    refuse: Callable[..., Refused], tmp_path: Path, toml: str, said: str
) -> None:
    """The line names the file where that helps, the table and the key."""
    (tmp_path / "mill.toml").write_text(toml)
    refused = refuse("--config", "mill.toml")
    assert refused.code == 2
    assert said in refused.line


def test_a_configuration_that_does_not_exist_is_named(refuse: Callable[..., Refused]) -> None:
    """No such file."""
    refused = refuse("--config", "absent.toml")
    assert refused.code == 2
    assert "configuration absent.toml: No such file or directory" in refused.line


def test_a_wrong_environment_variable_is_named_too(refuse: Callable[..., Refused], numbers: Path) -> None:
    """Variables are checked like options."""
    refused = refuse(numbers, *NUMBERS, FEEDMILL_MEMORY="plenty")
    assert refused.code == 2
    assert "memory='plenty'" in refused.line


def test_an_option_that_does_not_exist_is_an_error_of_usage(tmp_path: Path) -> None:
    """The parser of the command line says so, with exit code 2 too."""
    done = subprocess.run(
        command("serve", "--colour", "blue"),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env=environment(tmp_path),
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "--colour" in done.stderr
