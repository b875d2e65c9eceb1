import errno
import io
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from feedmill_protocol import limits
from feedmill_protocol.hashing import sample_seeds
from feedmill_protocol.tensors import FieldSpec, offsets
from feedmill_server import Pipeline
from feedmill_server.channel import Channel, ChannelClosed
from feedmill_server.jpeg import choose
from feedmill_server.pictures import write_shards
from feedmill_server.randomness import seed_generators
from feedmill_server.shards import ShardStore
from feedmill_server.slots import Slot
from feedmill_server.watch import Watch
from feedmill_server.worker import Exhausted, Mill, work
from shardmaker import write_tar

SEED, EPOCH = 11, 3
SIDE = 24

PICTURES = Pipeline(
    "png;jpg cls",
    transforms=[
        transforms.Compose(
            [
                transforms.RandomResizedCrop(SIDE),
                transforms.ColorJitter(brightness=0.4),
                transforms.ToTensor(),
            ]
        ),
        None,
    ],
)


def _explode(value: int) -> int:
    if value == 3:
        raise RuntimeError("three is " + "too " * 9999 + "many\udc80")
    if value == 5:
        raise StopIteration
    return value


FRAGILE = Pipeline("cls", transforms=[_explode])
ROWS = Pipeline("cls", transforms=[torch.arange])
NOTHING = Pipeline("cls txt", transforms=[None, lambda _: np.zeros((0, 2), np.float32)])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_shards(tmp_path_factory.mktemp("pictures"), shards=2, samples=10, sides=(30, 50))


class Worker:
    """A worker in a thread, and a broker's end of its channel."""

    def __init__(self, mills: Sequence[Mill]) -> None:
        self.channel, end = Channel.pair()
        self._theirs = Channel(end)
        self.watch, fd = Watch.create()
        os.close(fd)
        self.exhausted: Exhausted | None = None
        self._thread = threading.Thread(target=self._work, args=(mills,))
        self._thread.start()

    def _work(self, mills: Sequence[Mill]) -> None:
        try:
            work(self._theirs, mills, self.watch)
        except Exhausted as error:
            self.exhausted = error.with_traceback(None)  # whose frames have the slots
            self._theirs.end()

    def ask(self, *message: Any, fds: Sequence[int] = ()) -> list[Any]:
        self.channel.send(*message, fds=fds)
        answer, _ = self.channel.receive(30)
        return answer

    def part(
        self,
        slot: Slot,
        fields: Sequence[FieldSpec],
        rows: int,
        first: int,
        samples: Any,
        *,
        stream: int = 0,
        known: bool = False,
    ) -> tuple[list[str], list[list[Any]]]:
        """Have a part done; return keys and bad samples."""
        specs = [(field.name, field.dtype, field.shape, field.channels_last) for field in fields]
        wanted = np.array(samples, np.int64).tobytes()
        kind, keys, bad = self.ask(
            "part", slot.number, stream, specs, rows, first, SEED, EPOCH, wanted, fds=[] if known else [slot.fd]
        )
        assert kind == "done"
        return keys, bad

    def close(self) -> None:
        self.channel.close()
        self._thread.join(30)
        self._theirs.close()
        assert not self._thread.is_alive()
        self.watch.close()


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Worker]]:
    """Start workers of (pipeline, paths); they end with the test, and torch has as many threads as before."""
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    workers: list[Worker] = []
    stores: list[ShardStore] = []

    def start(*streams: tuple[Pipeline, Sequence[Path]]) -> Worker:
        opened = [ShardStore(paths) for _, paths in streams]
        stores.extend(opened)
        workers.append(Worker([Mill(pipeline, store) for (pipeline, _), store in zip(streams, opened, strict=True)]))
        return workers[-1]

    yield start
    for each in workers:
        each.close()
    for store in stores:
        store.close()


@pytest.fixture
def slot() -> Iterator[Slot]:
    slot = Slot(1, 256 * 1024)
    yield slot
    slot.close()


def numbers(folder: Path, values: Sequence[object], extension: str = "cls") -> Path:
    """Write a shard of numbers as text."""
    samples = [(f"{i:03d}", {extension: str(value).encode(), "txt": b""}) for i, value in enumerate(values)]
    return write_tar(folder / "numbers.tar", samples)


def block(slot: Slot, fields: Sequence[FieldSpec], rows: int) -> list[torch.Tensor]:
    """Return copies of the tensors of a batch."""
    specs = [field.rows(rows) for field in fields]
    return [
        torch.frombuffer(bytearray(slot.memory[start : start + spec.nbytes]), dtype=getattr(torch, spec.dtype)).view(
            spec.shape
        )
        for spec, start in zip(specs, offsets(specs)[0], strict=True)
    ]


def by_hand(paths: Sequence[Path], pipeline: Pipeline, shard: int, index: int) -> list[torch.Tensor]:
    """Make a sample as the documentation says that a worker makes it."""
    with ShardStore(paths) as store:
        opened = store.open(shard)
        members = {e: opened.read(*place) for e, place in opened.index.members(index).items()}
    seed_generators(int(sample_seeds(SEED, EPOCH, shard, index)[0]))
    return pipeline(members)


def test_a_probe_tells_what_rows_look_like(start: Callable[..., Worker], pictures: list[Path]) -> None:
    """Name, dtype and shape of every field, from one sample."""
    assert start((PICTURES, pictures)).ask("probe", 0, 1, 2) == [
        "probed",
        [["png;jpg", "float32", [3, SIDE, SIDE], False, [], []], ["cls", "int64", [], False, [], []]],
    ]


def test_rows_are_what_the_pipeline_makes_of_samples(
    start: Callable[..., Worker], pictures: list[Path], slot: Slot
) -> None:
    """Each row depends on seed, epoch and sample alone, not on its place or its neighbours; other rows stay."""
    fields = (FieldSpec("png;jpg", "float32", (3, SIDE, SIDE)), FieldSpec("cls", "int64", ()))
    first = start((PICTURES, pictures))
    slot.memory[:] = b"\xff" * slot.capacity
    samples = [(1, 4), (0, 9), (1, 4), (0, 0)]
    keys, bad = first.part(slot, fields, 6, 1, samples)
    assert (keys, bad) == (["000014", "000009", "000014", "000000"], [])
    images, labels = block(slot, fields, 6)
    for row, (shard, index) in enumerate(samples, 1):
        image, label = by_hand(pictures, PICTURES, shard, index)
        assert torch.equal(images[row], image)
        assert torch.equal(labels[row], label)
    assert not torch.equal(images[1], images[2])
    assert labels[[0, 5]].tolist() == [-1, -1]
    assert images[[0, 5]].isnan().all()
    # Another worker, another part, another place:
    second = start((PICTURES, pictures))
    second.part(slot, fields, 6, 5, [(1, 4)])
    again, _ = block(slot, fields, 6)
    assert torch.equal(again[5], images[1])


def test_a_worker_serves_several_streams_and_slots(
    start: Callable[..., Worker], pictures: list[Path], slot: Slot, tmp_path: Path
) -> None:
    """A slot is mapped when its descriptor comes and unmapped when it is dropped."""
    path = numbers(tmp_path, range(4))
    busy = start((PICTURES, pictures), (Pipeline("cls"), [path]))
    fields = (FieldSpec("cls", "int64", ()),)
    other = Slot(2, 4096)
    try:
        busy.part(slot, fields, 2, 0, [(0, 1), (0, 2)], stream=1)
        busy.part(other, fields, 1, 0, [(0, 3)], stream=1)
        assert busy.part(slot, fields, 2, 1, [(0, 0)], stream=1, known=True) == (["000"], [])
        assert block(slot, fields, 2)[0].tolist() == [1, 0]
        assert block(other, fields, 1)[0].tolist() == [3]
    finally:
        other.close()
    assert "feedmill-slot-2" in Path("/proc/self/maps").read_text()
    busy.channel.send("drop", 2)
    busy.ask("probe", 1, 0, 0)  # answered after that
    assert "feedmill-slot-2" not in Path("/proc/self/maps").read_text()


def test_a_sample_that_cannot_be_made_is_reported_and_the_others_are_made(
    start: Callable[..., Worker], tmp_path: Path, slot: Slot
) -> None:
    """With its row, key and reason, cut to size; whatever a transform raises."""
    path = numbers(tmp_path, [1, 3, "x", 5, 7])
    fields = (FieldSpec("cls", "int64", ()),)
    keys, bad = start((FRAGILE, [path])).part(slot, fields, 7, 2, [(0, i) for i in range(5)])
    assert keys == ["000", "001", "002", "003", "004"]
    assert [(row, shard, key) for row, shard, key, _ in bad] == [(3, 0, "001"), (4, 0, "002"), (5, 0, "003")]
    long, invalid, empty = (reason for *_, reason in bad)
    assert long.startswith("RuntimeError: three is too too")
    assert re.search(r"too many\? \(test_worker.py, line \d+\)$", long)  # where in the user's code
    assert len(long) <= limits.REASON_BYTES
    assert invalid.startswith("ValueError: invalid literal for int()")
    assert empty.startswith("StopIteration")
    values = block(slot, fields, 7)[0]
    assert [values[2].item(), values[6].item()] == [1, 7]


def test_rows_of_another_shape_or_dtype_are_bad(start: Callable[..., Worker], tmp_path: Path, slot: Slot) -> None:
    """They are not broadcast or cast; the reason says what was expected and what to do."""
    path = numbers(tmp_path, [3, 1, 4])
    fragile = start((ROWS, [path]))
    _, bad = fragile.part(slot, (FieldSpec("cls", "int64", (3,)),), 3, 0, [(0, 0), (0, 1), (0, 2)])
    assert [row for row, *_ in bad] == [1, 2]
    assert bad[0][3] == (
        "ValueError: field 'cls' is int64 [1], but the stream's first sample had int64 [3]; "
        "end its transforms with a fixed size and dtype"
    )
    _, bad = fragile.part(slot, (FieldSpec("cls", "float32", (3,)),), 3, 0, [(0, 0)], known=True)
    assert [(row, "is int64 [3], but" in reason) for row, _, _, reason in bad] == [(0, True)]


def test_a_missing_member_is_reported(start: Callable[..., Worker], tmp_path: Path, slot: Slot) -> None:
    """With what the sample has."""
    path = write_tar(tmp_path / "a.tar", [("a", {"cls": b"1"}), ("b", {"json": b"1", "txt": b""})])
    fields = (FieldSpec("cls", "int64", ()),)
    _, bad = start((Pipeline("cls"), [path])).part(slot, fields, 2, 0, [(0, 0), (0, 1)])
    assert bad == [[1, 0, "b", "MissingField: has no member cls, only json, txt"]]


def test_a_shard_that_cannot_be_read_is_bad_itself(start: Callable[..., Worker], tmp_path: Path, slot: Slot) -> None:
    """The key is empty; samples of other shards are made."""
    good = numbers(tmp_path, range(3))
    bad_one = tmp_path / "bad.tar"
    bad_one.write_text("text")
    fields = (FieldSpec("cls", "int64", ()),)
    miller = start((Pipeline("cls"), [bad_one, good]))
    keys, bad = miller.part(slot, fields, 2, 0, [(0, 0), (1, 2)])
    assert keys == ["", "002"]
    ((row, shard, key, reason),) = bad
    assert (row, shard, key) == (0, 0, "")
    assert reason.startswith("not a tar file: ")
    assert block(slot, fields, 2)[0][1].item() == 2
    kind, reason = miller.ask("probe", 0, 0, 0)
    assert kind == "unfit"
    assert reason.startswith("not a tar file: ")


def test_a_probe_of_a_bad_sample_tells_why(start: Callable[..., Worker], tmp_path: Path) -> None:
    """Also of one whose dtype cannot travel."""
    path = numbers(tmp_path, ["x"])
    fails = start(
        (Pipeline("cls"), [path]),
        (Pipeline("txt", transforms=[lambda _: torch.empty(1, dtype=torch.float8_e5m2)]), [path]),
    )
    assert fails.ask("probe", 0, 0, 0) == ["unfit", "ValueError: invalid literal for int() with base 10: b'x'"]
    kind, reason = fails.ask("probe", 1, 0, 0)
    assert kind == "unfit"
    assert reason.startswith("TypeError: a tensor of float8_e5m2 cannot be sent")


def test_a_field_may_have_no_elements(start: Callable[..., Worker], tmp_path: Path, slot: Slot) -> None:
    """It takes no memory, and the other fields are where they belong."""
    path = numbers(tmp_path, [7, 8])
    empty = start((NOTHING, [path]))
    assert empty.ask("probe", 0, 0, 0) == [
        "probed",
        [["cls", "int64", [], False, [], []], ["txt", "float32", [0, 2], False, [], []]],
    ]
    fields = (FieldSpec("txt", "float32", (0, 2)), FieldSpec("cls", "int64", ()))
    backwards = Pipeline("txt cls", transforms=[lambda _: np.zeros((0, 2), np.float32), None])
    _, bad = start((backwards, [path])).part(slot, fields, 2, 0, [(0, 0), (0, 1)])
    assert bad == []
    assert np.frombuffer(slot.memory[:16], np.int64).tolist() == [7, 8]


def test_a_dropped_slot_stays_mapped_while_there_are_tensors_of_it(
    start: Callable[..., Worker], tmp_path: Path, slot: Slot
) -> None:
    """An exception that somebody keeps has frames, and those have tensors: nobody is to find no memory behind them."""
    kept = ValueError("always the same one")

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("feedmill-slot-1")

    def _raise(_: object) -> None:
        raise kept

    path = numbers(tmp_path, [1])
    keeper = start((Pipeline("cls", transforms=[_raise]), [path]))
    fields = (FieldSpec("cls", "int64", ()),)
    keeper.part(slot, fields, 1, 0, [(0, 0)])
    keeper.channel.send("drop", slot.number)
    kind, reason = keeper.ask("probe", 0, 0, 0)
    assert (kind, reason.startswith("ValueError: always the same one")) == ("unfit", True)
    assert mapped() == 2  # the slot's own memory is the other one
    kept.__traceback__ = None
    assert mapped() == 1


def test_workers_work_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch uses one thread: the workers are the parallelism; a closed channel ends them."""
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    ours, theirs = Channel.pair()
    ours.close()
    end = Channel(theirs)
    watch, fd = Watch.create()
    os.close(fd)
    work(end, [], watch)
    end.close()
    assert (threads, watch.beats) == ([1], 1)
    watch.close()


def test_images_of_other_modes_become_rows(start: Callable[..., Worker], tmp_path: Path, slot: Slot) -> None:
    """A greyscale picture among colours has three channels like the others."""
    shades = [Image.new("L", (4, 4), 200), Image.new("RGB", (4, 4), (1, 2, 3)), Image.new("P", (4, 4), 0)]
    samples = []
    for i, image in enumerate(shades):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        samples.append((str(i), {"png": buffer.getvalue()}))
    fields = (FieldSpec("png", "uint8", (4, 4, 3)),)
    path = write_tar(tmp_path / "modes.tar", samples)
    _, bad = start((Pipeline("png", decode="rgb8"), [path])).part(slot, fields, 3, 0, [(0, 0), (0, 1), (0, 2)])
    assert bad == []
    assert block(slot, fields, 3)[0][:2, 0, 0].tolist() == [[200] * 3, [1, 2, 3]]


# What does not leave a worker alone.


def _notes(seen: list[tuple[int, str]], workers: list[Worker]) -> Callable[[int], int]:
    def note(value: int) -> int:
        seen.append((workers[0].watch.beats, workers[0].watch.key))
        return value

    return note


def test_a_worker_beats_after_every_sample_and_says_which_is_in_hand(
    start: Callable[..., Worker], tmp_path: Path, slot: Slot
) -> None:
    """The key is there while the transform runs, and none between two samples."""
    path = numbers(tmp_path, [5, "x", 7])
    seen: list[tuple[int, str]] = []
    workers: list[Worker] = []
    workers.append(start((Pipeline("cls", transforms=[_notes(seen, workers)]), [path])))
    workers[0].part(slot, (FieldSpec("cls", "int64", ()),), 3, 0, [(0, 0), (0, 1), (0, 2)])
    (first, key), (last, other) = seen
    assert (key, other, workers[0].watch.key) == ("000", "002", "")
    assert first > 1, "the shard was scanned"
    assert (last - first, workers[0].watch.beats - last) == (2, 1)


def _take_30_ms(value: int) -> int:
    time.sleep(0.03)
    return value


def test_a_worker_says_how_long_it_reads_decodes_and_transforms(
    start: Callable[..., Worker], pictures: list[Path], tmp_path: Path, slot: Slot
) -> None:
    """A probe does not count, nor does the time between parts; what fails counts."""
    path = numbers(tmp_path, ["x", 7, 8])
    slow = Pipeline("cls", transforms=[_take_30_ms])
    worker = start((slow, [path]), (PICTURES.fused(choose(""))[0], pictures))
    worker.ask("probe", 0, 0, 1)
    assert worker.watch.seconds == (0.0, 0.0, 0.0)
    time.sleep(0.1)
    worker.part(slot, (FieldSpec("cls", "int64", ()),), 3, 0, [(0, 0), (0, 1), (0, 2)])
    read, decode, transform = before = worker.watch.seconds
    assert 0 < read < 0.1
    assert 0 < decode < 0.1
    assert 0.06 <= transform < 0.1
    fields = (FieldSpec("png;jpg", "float32", (3, SIDE, SIDE)), FieldSpec("cls", "int64", ()))
    worker.part(slot, fields, 2, 0, [(0, 0), (1, 1)], stream=1, known=True)
    assert all(after > already for already, after in zip(before, worker.watch.seconds, strict=True))


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError("no room"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (OSError(errno.EMFILE, "Too many open files"), False),
    ],
    ids=["memory", "torch", "descriptors"],
)
def test_a_worker_that_runs_out_of_something_ends(
    start: Callable[..., Worker], tmp_path: Path, slot: Slot, error: Exception, *, memory: bool
) -> None:
    """It reports nothing bad: another worker, which has all there is, is to try the sample again."""

    def _use_up(_: object) -> None:
        raise error

    worker = start((Pipeline("cls", transforms=[_use_up]), [numbers(tmp_path, [1])]))
    with pytest.raises(ChannelClosed):
        worker.part(slot, (FieldSpec("cls", "int64", ()),), 1, 0, [(0, 0)])
    worker.close()
    assert worker.exhausted is not None
    assert worker.exhausted.memory is memory
    assert str(error) in str(worker.exhausted)
    error.__traceback__ = None  # whose frames have the slot


def test_other_errors_of_the_system_are_the_samples_own(
    start: Callable[..., Worker], tmp_path: Path, slot: Slot
) -> None:
    """A transform that looks for a file which is not there fails for every worker."""

    def _look(_: object) -> None:
        raise OSError(errno.ENOENT, "No such file or directory", "mask.png")

    worker = start((Pipeline("cls", transforms=[_look]), [numbers(tmp_path, [1])]))
    _, ((_, _, key, reason),) = worker.part(slot, (FieldSpec("cls", "int64", ()),), 1, 0, [(0, 0)])
    assert key == "000"
    assert reason.startswith("FileNotFoundError: [Errno 2] No such file or directory: 'mask.png' (test_worker.py, line")
