"""The data and the servers that the tests share. Nobody may harm a shared server: starting one takes seconds."""

import io
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from feedmill_server.pictures import write_shards
from integration import processes
from shardmaker import write_tar

PIPELINES = Path(__file__).with_name("pipelines.py")
REAL = Path(os.environ.get("FEEDMILL_TEST_SHARDS", Path(__file__).parents[3] / "shared" / "data"))

MEMORY = "160MB"
"""Four batches of 64 float32 images of 224²: little enough that the cache of a shared server hides nothing."""


@dataclass(frozen=True)
class Dataset:
    """A stream, and what an epoch of it should be."""

    stream: str
    shards: tuple[Path, ...]
    samples: int
    batch_size: int

    def __len__(self) -> int:
        return (self.samples + self.batch_size - 1) // self.batch_size


@dataclass(frozen=True)
class Data:
    """The data sets by the names of their streams, and a server's configuration that serves them all."""

    sets: dict[str, Dataset]
    config: Path

    def __getitem__(self, stream: str) -> Dataset:
        if stream not in self.sets:
            pytest.skip(f"{stream} needs the real shards, and {REAL} does not have them")
        return self.sets[stream]


def png(number: int) -> bytes:
    """Return a small PNG of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (40, 40), (number, 255 - number, number // 2)).save(file, "PNG")
    return file.getvalue()


def make(folder: Path) -> Data:
    """Make what can be made, and use the real shards where they are."""
    pictures = tuple(write_shards(folder, shards=3, samples=40, sides=(96, 160)))
    numbers = tuple(
        write_tar(folder / f"numbers-{first}.tar", [(f"{n:03d}", {"cls": b"%d" % n}) for n in range(first, first + 50)])
        for first in (0, 50)
    )
    colours = write_tar(
        folder / "colours.tgz", [(f"{n}", {"png": png(n), "cls": b"%d" % n}) for n in range(90)], gzip=True
    )
    sets = {
        "pictures": (Dataset("pictures", pictures, 120, 16), "preset = 'imagenet-train'"),
        "pictures-eval": (Dataset("pictures-eval", pictures, 120, 16), "preset = 'imagenet-eval'"),
        "pictures-exact": (Dataset("pictures-exact", pictures, 120, 16), "preset = 'imagenet-train'\nexact = true"),
        "colours": (Dataset("colours", (colours,), 90, 20), f"pipeline = '{PIPELINES}:PNG'"),
        "slow": (Dataset("slow", numbers, 100, 8), f"pipeline = '{PIPELINES}:SLOW'"),
        "raises": (Dataset("raises", numbers, 100, 8), f"pipeline = '{PIPELINES}:RAISES'"),
        "kills": (Dataset("kills", numbers, 100, 8), f"pipeline = '{PIPELINES}:KILLS'"),
        "varies": (Dataset("varies", numbers, 100, 8), f"pipeline = '{PIPELINES}:VARIES'"),
    }
    real = tuple(REAL / f"imagenet-{i:06d}.tar" for i in range(5))
    if all(path.is_file() for path in real):
        sets["imagenet"] = (Dataset("imagenet", real, 500, 64), "preset = 'imagenet-train'")
        sets["imagenet-eval"] = (Dataset("imagenet-eval", real, 500, 64), "preset = 'imagenet-eval'")
        for name, preset in (("imagenet-exact", "imagenet-train"), ("imagenet-eval-exact", "imagenet-eval")):
            sets[name] = (Dataset(name, real, 500, 64), f"preset = '{preset}'\nexact = true")
    if (REAL / "sample.tgz").is_file():
        sets["sample"] = (Dataset("sample", (REAL / "sample.tgz",), 90, 20), f"pipeline = '{PIPELINES}:PNG'")
    tables = [
        f"[streams.{name}]\nshards = {list(map(str, dataset.shards))}\nbatch_size = {dataset.batch_size}\n{pipeline}\n"
        for name, (dataset, pipeline) in sets.items()
    ]
    config = folder / "feedmill.toml"
    config.write_text("\n".join(tables))
    return Data({name: dataset for name, (dataset, _) in sets.items()}, config)


class Fleet:
    """The shared servers, each started when it is first asked for."""

    def __init__(self, folder: Path, config: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._config = config
        self._stack = stack
        self._served: dict[str, processes.Served] = {}

    def __getitem__(self, name: str) -> str:
        """Return the URL of "one", "two" or "four", which have so many workers, or of "ipc", which has two."""
        if name not in self._served:
            workers = {"one": 1, "two": 2, "four": 4, "ipc": 2}[name]
            bind = f"ipc://{self._folder}/socket" if name == "ipc" else "tcp://127.0.0.1:*"
            args = ("--config", self._config, "--workers", str(workers), "--memory", MEMORY, "--bind", bind)
            env = {"FEEDMILL_CACHE": str(self._folder / f"cache-{name}")}
            self._served[name] = served = processes.start(self._folder, *args, env=env)
            processes.SHARED.add(served.process.pid)
            self._stack.callback(processes.stop, served)
        return self._served[name].url
