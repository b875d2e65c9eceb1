"""The Slurm job, with stand-ins for Slurm's commands: nodes are addresses of this machine. All else is real."""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path

import pytest

from integration.processes import descendants, environment
from shardmaker import write_tar

JOB = Path(__file__).parents[2] / "docker" / "slurm" / "feedmill.sbatch"

SRUN = """\
import os, signal, subprocess, sys
from itertools import takewhile

options = dict(arg.split("=", 1) for arg in takewhile(lambda arg: arg.startswith("--"), sys.argv[1:]))
command = sys.argv[1 + len(options):]
group = options.pop("--het-group")
output = options.pop("--output", "")
limits = {"--ntasks-per-node": "1", "--cpus-per-task": os.environ[f"SLURM_CPUS_PER_TASK_HET_GROUP_{group}"]}
assert {"--kill-on-bad-exit": "0", **options} == {"--kill-on-bad-exit": "0", **limits}, options
with open(f"srun-{group}.pid", "w") as file:
    print(os.getpid(), file=file)
tasks = []
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
for number, node in enumerate(os.environ[f"SLURM_JOB_NODELIST_HET_GROUP_{group}"].split(",")):
    file = open(output.replace("%t", str(number)), "w") if output else None
    here = [arg.replace("0.0.0.0", node) for arg in command]
    tasks.append(subprocess.Popen(here, stdout=file, stderr=file and subprocess.STDOUT))
sys.exit(max(task.wait() for task in tasks))
"""

SCANCEL = """\
import os, signal, sys

quiet, how, step = sys.argv[1:]
job, number = step.split(".")
assert (quiet, how, job, number) == ("--quiet", "--signal=TERM", os.environ["SLURM_JOB_ID"], "0")
with open(f"srun-{number}.pid") as file:
    os.kill(int(file.read()), signal.SIGTERM)
"""

SCONTROL = """\
import sys

_, show, hostnames, nodes = sys.argv
assert (show, hostnames) == ("show", "hostnames")
print(*nodes.split(","), sep="\\n")
"""

TORCHRUN = """\
import os, runpy, sys
from torch.distributed.run import get_args_parser

args = get_args_parser().parse_args()
host, port = args.rdzv_endpoint.split(":")
assert (args.nnodes, args.rdzv_id, host) == ("1", os.environ["SLURM_JOB_ID"], "127.0.0.1") and int(port) > 0
sys.argv = [args.training_script, *args.training_script_args]
runpy.run_path(args.training_script, run_name="__main__")
"""
"""Understands what torchrun does, and is the only process of the training."""

TRAIN = """\
import argparse, feedmill, sys

parser = argparse.ArgumentParser()
parser.add_argument("url")
parser.add_argument("--keys")
parser.add_argument("--notes")
args = parser.parse_args()
with feedmill.connect(args.url, keys=args.keys) as feed, open(args.notes, "w") as notes:
    for batch in feed.batches():
        print(*batch.keys, sep="\\n", file=notes)
sys.exit(3)
"""

PIPELINE = """\
import time
from feedmill_server import Pipeline

time.sleep({pause})
P = Pipeline(fields="cls", decode=False, transforms=[len], batch_size=8)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start the job on two nodes for servers and one for the training, in a folder with shards and a configuration."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scancel", SCANCEL), ("scontrol", SCONTROL), ("torchrun", TORCHRUN)):
        (programs / name).write_text(f"#!{sys.executable}\n{text}")
        (programs / name).chmod(0o755)
    write_tar(tmp_path / "n.tar", [(f"{n:02d}", {"cls": b"%d" % n}) for n in range(50)])
    (tmp_path / "train.py").write_text(TRAIN)
    number = next(number for number in count(os.getpid() % 10000) if are_free(20000 + number % 10000 * 2))
    env = {
        "PATH": os.pathsep.join((str(programs), str(Path(sys.executable).parent), os.environ["PATH"])),
        "SLURM_JOB_ID": str(number),
        "SLURM_JOB_NODELIST_HET_GROUP_0": "127.0.0.1,127.0.0.2",
        "SLURM_JOB_NODELIST_HET_GROUP_1": "127.0.0.1",
        "SLURM_CPUS_PER_TASK_HET_GROUP_0": "1",
        "SLURM_CPUS_PER_TASK_HET_GROUP_1": "2",
    }
    with ExitStack() as stack:

        def run(*args: str, pause: float = 0, preset: str = "", **more: str) -> "subprocess.Popen[str]":
            (tmp_path / "augment.py").write_text(PIPELINE.format(pause=pause))
            made = f'preset = "{preset}"' if preset else 'pipeline = "augment.py:P"'
            (tmp_path / "feedmill.toml").write_text(f'workers = 1\n[streams.train]\nshards = ["n.tar"]\n{made}\n')
            process = subprocess.Popen(
                ["/bin/bash", JOB, *args],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
                env=environment(tmp_path, env | more),
            )
            stack.callback(end, process)
            return process

        yield run


def are_free(port: int) -> bool:
    with suppress(OSError), socket.create_server(("", port)), socket.create_server(("", port + 1)):
        return True
    return False


def end(process: "subprocess.Popen[str]") -> None:
    for pid in (*descendants(process.pid), process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=10)


def test_a_job_serves_its_training_and_ends_with_it(
    start: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    """Two servers with keys of this job's own give all samples; its exit code is the training's."""
    job = start("feedmill.toml", "train.py", "--notes=notes")
    _, errors = job.communicate(timeout=90)
    assert job.returncode == 3, errors
    assert sorted((tmp_path / "notes").read_text().split()) == [f"{n:02d}" for n in range(50)]
    (run,) = tmp_path.glob("feedmill-*/")
    logs = [(run / f"server-{task}.log").read_text() for task in range(2)]
    assert [log.count("ready tcp://127.0.0.") for log in logs] == [1, 1]
    assert all("stopped; " in log for log in logs)
    assert stat.S_IMODE((run / "keys").stat().st_mode) == 0o700


def test_servers_that_do_not_come_end_the_job(start: Callable[..., "subprocess.Popen[str]"], tmp_path: Path) -> None:
    """It says why; the training is not begun."""
    job = start("feedmill.toml", "train.py", "--notes=notes", preset="imagenet-trains")
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 1
    assert "no server could start: feedmill: stream train: there is no preset 'imagenet-trains'" in errors
    assert not (tmp_path / "notes").exists()


def test_servers_that_take_too_long_end_the_job(start: Callable[..., "subprocess.Popen[str]"]) -> None:
    """And are ended themselves."""
    job = start("feedmill.toml", "train.py", pause=60, READY_SECONDS="3")
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 1
    assert "no server was ready after 3 s (READY_SECONDS)" in errors


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (("feedmill.toml",), "expected CONFIG.toml TRAIN.py [ARGUMENT…], and got 1 arguments"),
        (("other.toml", "train.py"), "there is no configuration other.toml"),
        (("feedmill.toml", "other.py"), "there is no script other.py"),
    ],
)
def test_wrong_arguments_are_errors(
    start: Callable[..., "subprocess.Popen[str]"], tmp_path: Path, args: tuple[str, ...], complaint: str
) -> None:
    """Before anything is started or written."""
    _, errors = start(*args).communicate(timeout=10)
    assert errors == f"feedmill.sbatch: {complaint}\n"
    assert not list(tmp_path.glob("feedmill-*"))
