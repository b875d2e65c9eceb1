"""``feedmill demo``: two servers, one trainer, one minute, nothing to prepare.

Draws a small dataset, starts two servers on this machine, trains a small network on their batches, and leaves a contact
sheet of what it saw. It uses feedmill as any trainer would: the lines that matter are in `_train`.
"""

from __future__ import annotations

import importlib.util
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, Self

import torch
from torch import nn

from feedmill_protocol.errors import FeedmillError, ServerUnavailable, UsageError

from . import __version__, connect
from .contact_sheet import contact_sheet

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence
    from types import FrameType, TracebackType

    from rich.console import Console

__all__ = ["add_arguments", "run"]

_SERVERS: Final = 2

_READY_SECONDS: Final = 60.0
"""A server imports torch first; on a slow disk that alone takes half a minute."""

_STOP_SECONDS: Final = 10.0
"""Twice what a server promises for its end."""

_LEARNING_RATE: Final = 4e-3
"""The peak of a one-cycle schedule; half and twice as much learn nearly as well."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``feedmill demo``."""
    parser.add_argument("--epochs", type=int, default=6, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("feedmill-demo.png"),
        metavar="FILE",
        help="where to write the contact sheet (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo, and say on stdout how it goes."""
    _check(args)
    from rich.console import Console  # noqa: PLC0415 (the thin client comes without it)

    screen = _Screen(Console(highlight=False, soft_wrap=True))
    started = time.monotonic()
    with _ended_by_signals():
        shards = _pictures(screen)
        with ExitStack() as stack:
            servers = [stack.enter_context(_Server(shards)) for _ in range(_SERVERS)]
            urls = [server.ready() for server in servers]
            screen.say("servers", " and ".join(urls))
            _train(urls, args.epochs, args.output, screen)
    screen.say("servers", _ends(servers))
    screen.say("done", f"in {time.monotonic() - started:.0f} s")
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.epochs < 1:
        raise UsageError(f"--epochs {args.epochs}: train for at least 1")
    if not args.output.absolute().parent.is_dir():
        raise UsageError(f"--output {args.output}: there is no folder {args.output.absolute().parent}")
    missing = [name for name in ("PIL", "rich", "torchvision") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"the demo runs servers, which need {', '.join(missing)}; pip install 'feedmill[server]'")


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that the servers end with the demo."""

    def end(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)  # as a shell reports a process that a signal ended

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Update(Protocol):
    def __call__(self, done: int, note: str = "") -> None: ...


class _Screen:
    """What the demo shows: progress bars and lines at a terminal, the same lines without bars elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, topic: str, text: str) -> None:
        self._console.print(f"{topic:<10}{text}", markup=False)

    @contextmanager
    def progress(self, topic: str, total: int) -> Iterator[_Update]:
        """Show a bar while the block runs; the block calls what it gets with the count so far and a note."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn  # noqa: PLC0415 (as above)

        columns = (TextColumn(f"{topic:<9}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
        hidden = not self._console.is_terminal
        with Progress(*columns, console=self._console, transient=True, disable=hidden) as bars:
            task = bars.add_task("", total=total, note="")
            yield lambda done, note="": bars.update(task, completed=done, note=note)


def _pictures(screen: _Screen) -> list[Path]:
    """Return the shards of the demo, drawn now or by an earlier demo of this version."""
    from feedmill_server.cache import user_cache  # noqa: PLC0415 (beside the next)
    from feedmill_server.draw import SAMPLES, SHARDS, SIDES  # noqa: PLC0415 (needs Pillow)
    from feedmill_server.pictures import CLASSES, shard_paths, write_shards  # noqa: PLC0415 (needs Pillow)

    directory = user_cache() / f"demo-{__version__}"
    paths = shard_paths(directory, SHARDS)
    count = SHARDS * SAMPLES
    if not all(path.is_file() for path in paths):
        with screen.progress("drawing", count) as update:
            try:
                paths = write_shards(directory, shards=SHARDS, samples=SAMPLES, sides=SIDES, progress=update)
            except OSError as error:
                raise UsageError(f"cannot write the demo's pictures: {error}; set XDG_CACHE_HOME") from error
    screen.say("pictures", f"{count:,} of {len(CLASSES)} classes, in {directory}")
    return paths


class _Server:
    """A ``feedmill serve`` process on a free port of the loopback interface; leaving the context ends it."""

    def __init__(self, shards: Sequence[Path]) -> None:
        workers = max(1, len(os.sched_getaffinity(0)) // _SERVERS)
        self._command = [sys.executable, "-m", "feedmill", "serve", *map(str, shards)]
        self._command += ["--pipeline", "feedmill_server.demo_pipeline:TRAIN"]
        self._command += ["--workers", str(min(workers, 4)), "--bind", "tcp://127.0.0.1:*"]

    def __enter__(self) -> Self:
        # Settings that are meant for the user's own servers stay away from these.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("FEEDMILL_")}
        # A file, not a pipe: nobody reads it unless the server fails.
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(  # noqa: S603 (this Python, arguments from this module)
            self._command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            process_group=0,  # Ctrl-C is for the demo, which then ends its servers in order
        )
        return self

    def ready(self) -> str:
        """Wait until the server can be asked, and return its endpoint."""
        line = self._first_line(time.monotonic() + _READY_SECONDS)
        word, _, endpoint = line.strip().partition(" ")
        if word != "ready" or not endpoint:
            raise FeedmillError(f"a server of the demo {self._state()}; it wrote:\n{self._written()}")
        return endpoint

    def end(self) -> str:
        """Say how the server ended."""
        return "ended well" if self._process.returncode == 0 else self._state()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._process.terminate()
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass  # its status will say that it was killed
        finally:  # also where a second Ctrl-C breaks the wait
            self._process.kill()
            self._process.wait()
            self._log.close()
            if self._process.stdout is not None:
                self._process.stdout.close()

    def _first_line(self, deadline: float) -> str:
        """Read stdout up to a line feed, or to its end where the server fails."""
        if self._process.stdout is None:
            return ""
        read, descriptor = b"", self._process.stdout.fileno()
        while b"\n" not in read:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise ServerUnavailable(_READY_SECONDS, {"a server of the demo": f"starting; {self._written()}"})
            more = os.read(descriptor, 4096)
            if not more:
                self._process.wait(_STOP_SECONDS)
                return ""
            read += more
        return read.partition(b"\n")[0].decode(errors="replace")

    def _state(self) -> str:
        status = self._process.poll()
        if status is None:
            return "is running"
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

    def _written(self) -> str:
        """Return the end of the server's log: a traceback or two."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-4000:].strip() or "nothing"


def _ends(servers: Sequence[_Server]) -> str:
    ends = [server.end() for server in servers]
    return f"all {ends[0]}" if len(set(ends)) == 1 else ", ".join(f"one {end}" for end in ends)


def _train(urls: Sequence[str], epochs: int, output: Path, screen: _Screen) -> None:
    """Train on the batches of the servers, and write the contact sheet."""
    from feedmill_server.pictures import CLASSES  # noqa: PLC0415 (needs Pillow)

    torch.manual_seed(0)
    senders: Counter[str] = Counter()
    with connect(list(urls)) as feed:
        learner = _Learner(len(CLASSES), epochs * len(feed))
        for epoch in range(1, epochs + 1):
            score = _Score()
            with screen.progress(f"epoch {epoch}", len(feed)) as update:
                for step, batch in enumerate(feed.batches(), 1):
                    images, labels = batch.tensors
                    learner.learn(images, labels, score)
                    senders[batch.server] += 1
                    update(step, str(score))
            screen.say(f"epoch {epoch}", str(score))
        screen.say("batches", ", ".join(f"{count} from {sender}" for sender, count in sorted(senders.items())))
        images, labels = next(iter(feed))
    _write_sheet(images, labels, learner.guess(images), output)
    screen.say("see", f"{output}: a batch as the trainer gets it, with what the network takes each picture for")


class _Score:
    """How an epoch went so far."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._loss = 0.0
        self._right = 0
        self._images = 0

    def add(self, loss: torch.Tensor, guesses: torch.Tensor, labels: torch.Tensor) -> None:
        self._loss += loss.item() * len(labels)
        self._right += int((guesses == labels).sum())
        self._images += len(labels)

    def __str__(self) -> str:
        images = max(self._images, 1)
        rate = self._images / max(time.monotonic() - self._started, 1e-9)
        return f"loss {self._loss / images:.2f}   accuracy {self._right / images:4.0%}   {rate:,.0f} images/s"


class _Learner:
    """A small convolutional network, and how it learns."""

    def __init__(self, classes: int, steps: int) -> None:
        layers = (_layer(3, 32, 5), _layer(32, 64), _layer(64, 128), _layer(128, 128))
        self._model = nn.Sequential(*layers, _Pool(), nn.Linear(2 * 128, classes))
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=_LEARNING_RATE)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimizer, _LEARNING_RATE, total_steps=steps)

    def learn(self, images: torch.Tensor, labels: torch.Tensor, score: _Score) -> None:
        """Take one step, and add how it went to the score."""
        logits = self._model(images)
        loss = nn.functional.cross_entropy(logits, labels)
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        self._optimizer.step()
        self._schedule.step()
        score.add(loss, logits.argmax(1), labels)

    def guess(self, images: torch.Tensor) -> torch.Tensor:
        """Return the most likely label of each image."""
        self._model.eval()
        with torch.inference_mode():
            return torch.as_tensor(self._model(images).argmax(1))


def _layer(channels: int, filters: int, side: int = 3) -> nn.Module:
    convolution = nn.Conv2d(channels, filters, side, stride=2, padding=side // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(filters), nn.ReLU())


class _Pool(nn.Module):
    """Mean and maximum of each map: how much of a feature there is, and whether there is any."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.cat((maps.mean((2, 3)), maps.amax((2, 3))), 1)


def _write_sheet(images: torch.Tensor, labels: torch.Tensor, guesses: torch.Tensor, output: Path) -> None:
    from feedmill_server.demo_pipeline import MEAN, STD  # noqa: PLC0415 (needs torchvision)
    from feedmill_server.pictures import CLASSES  # noqa: PLC0415 (needs Pillow)

    pairs = zip(labels.tolist(), guesses.tolist(), strict=True)
    captions = [CLASSES[label] if label == guess else f"{CLASSES[guess]}? {CLASSES[label]}!" for label, guess in pairs]
    contact_sheet(images, captions, output, mean=MEAN, std=STD)
