"""What `feedmill bake` saves: the CPU time of a server for an image, from the originals and from baked shards."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

import feedmill
from benchmarks import contest, service
from benchmarks.processes import cpu_seconds, descendants

_FORMATS: Final = ("npy", "ten", "jpg")


def main() -> None:
    """Run it: one worker each, which is a core's worth."""
    given = contest.entry()
    torch.set_num_threads(1)
    figures = {"originals_us": _server_us(given.shards, service.IMAGENET, given)}
    with tempfile.TemporaryDirectory(dir=given.cache) as folder:
        for kind in _FORMATS:
            place = Path(folder, kind)
            _bake(given.shards, place, kind)
            shards = sorted(map(str, place.glob("*.tar")))
            figures[f"{kind}_us"] = _server_us(shards, ("--pipeline", str(place / "baked.json")), given)
    contest.say(**figures)


def _bake(shards: Sequence[str], folder: Path, kind: str) -> None:
    folder.mkdir()
    command = [sys.executable, "-m", "feedmill", "bake", *shards, str(folder / "baked-%06d.tar")]
    subprocess.run([*command, *service.IMAGENET, "--format", kind], check=True, capture_output=True)


def _server_us(shards: Sequence[str], pipeline: Sequence[str], given: contest.Entry) -> float:
    """Return microseconds of CPU that all processes of a server spend on an image, sending it included."""
    with (
        service.serving(shards, "--batch-size", str(given.batch), workers=1, pipeline=pipeline) as server,
        feedmill.connect(server.url, dtype=torch.uint8, last="drop") as feed,
    ):
        stream = contest.cycle(feed)
        for _ in range(service.FILL):
            next(stream)
        before, done = cpu_seconds(descendants(server.pid)), 0
        while done < given.images:
            done += len(next(stream)[0])
        return 1e6 * (cpu_seconds(descendants(server.pid)) - before) / done


if __name__ == "__main__":
    main()
