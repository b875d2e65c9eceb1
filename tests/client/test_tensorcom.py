"""Connections: between ourselves, and with the real tensorcom in both directions."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorcom
import tensorcom.tenbin
import torch
import zmq

import feedmill
from feedmill.rates import Rates
from feedmill.tensorcom import Connection, publish
from feedmill_protocol.errors import ProtocolError, ServerUnavailable, UsageError
from feedmill_protocol.tenbin import CODES

PAIRS = [("zpush", "zpull"), ("zrpush", "zrpull"), ("zpub", "zsub"), ("zrpub", "zrsub")]
BINDS = {"zpull", "zpub", "zrpush", "zrsub"}
KNOWN = [code for code in CODES if code not in {"u4", "b1", "c8", "c16"}]
"""To tensorcom."""

TIMEOUT = 20.0
BATCH = [np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.array([7, 8], np.int32)]

Opener = Callable[..., Any]


@pytest.fixture
def opened() -> Iterator[Opener]:
    """Open connections, which are closed when the test is over."""
    with ExitStack() as stack:

        def start(url: Any, **arguments: Any) -> Connection:
            connection = Connection(url, **{"timeout": TIMEOUT} | arguments)
            stack.callback(connection.abort)
            return connection

        yield start


@pytest.fixture
def theirs() -> Iterator[Opener]:
    """Open tensorcom's own connections; its `close` leaves the context to the garbage collector."""
    with ExitStack() as stack:

        def start(url: str, **arguments: Any) -> Any:
            connection = tensorcom.Connection(url, **arguments)
            stack.callback(lambda: connection.context.destroy(linger=0))
            return connection

        yield start


def pair(send: str, receive: str, transport: str, folder: Path) -> tuple[str, str]:
    """Return URLs for two ends."""
    if transport == "ipc":
        return f"{send}+ipc://{folder}/s", f"{receive}+ipc://{folder}/s"
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
    return f"{send}://127.0.0.1:{port}", f"{receive}://127.0.0.1:{port}"


def same(found: Any, expected: Any) -> bool:
    return len(found) == len(expected) and all(
        a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b) for a, b in zip(found, expected, strict=True)
    )


def until_received(send: Callable[[], None], receive: Callable[[], Any]) -> Any:
    """Send again and again, as a publisher does that knows nothing of its subscribers, until one has something."""
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(receive)
        while not received.done():
            send()
            time.sleep(0.01)
        return received.result()


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
@pytest.mark.parametrize(("send", "receive"), PAIRS)
def test_batches_go_to_tensorcom_and_come_from_it(
    send: str, receive: str, transport: str, tmp_path: Path, opened: Opener, theirs: Opener
) -> None:
    """Over every kind of socket; nothing is lost between two that stay."""
    to, at = pair(send, receive, transport, tmp_path)
    ours, reader = opened(to), theirs(at)
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(ours.serve, [BATCH] * 5)
        assert all(same(reader.recv(), BATCH) for _ in range(5))
        assert sent.result() == 5
    ours.abort()
    reader.context.destroy(linger=0)

    to, at = pair(send, receive, transport, tmp_path)
    reader, writer = opened(at), theirs(to)
    assert same(until_received(lambda: writer.send(BATCH), reader.recv), BATCH)


@pytest.mark.parametrize("frames", ["many", "one"])
def test_every_dtype_goes_both_ways(frames: str, tmp_path: Path, opened: Opener, theirs: Opener) -> None:
    """Those that tensorcom knows to and from it, all between ourselves; empty arrays, too."""
    multipart = frames == "many"
    known = [np.ones((2, 3), code) for code in KNOWN]
    every = [np.ones((2, 3), code) for code in CODES] + [np.zeros((0, 3)), np.array(5.0)]
    to, at = pair("zpush", "zpull", "ipc", tmp_path)
    reader = opened(at)
    with opened(to, allow64=True, multipart=multipart) as ours:
        ours.send(every)
    assert same(reader.recv(), every)
    writer = theirs(to, multipart=multipart)
    writer.send(known, allow64=True)
    assert same(reader.recv(), known)
    reader.abort()
    other = theirs(at, multipart=multipart)
    with opened(to, allow64=True, multipart=multipart) as ours:
        ours.send(known)
    assert same(other.recv(), known)


def test_all_urls_of_a_list_are_read(tmp_path: Path, opened: Opener) -> None:
    """In turn: a quick sender does not keep out the others."""
    senders = [opened(f"zrpush+ipc://{tmp_path}/{i}") for i in range(3)]
    reader = opened(f"zrpull+ipc://{tmp_path}/{{0..2}}")
    for number, sender in enumerate(senders):
        for _ in range(4):
            sender.send([np.full(2, number, np.int32)])
    time.sleep(0.1)  # so that all have come
    first = [int(reader.recv()[0][0]) for _ in range(6)]
    assert sorted(first) == [0, 0, 1, 1, 2, 2]


def test_what_is_received_belongs_to_the_receiver(tmp_path: Path, opened: Opener) -> None:
    """It can be written to, and made a tensor of, without a warning."""
    to, at = pair("zpush", "zpull", "ipc", tmp_path)
    reader, writer = opened(at), opened(to)
    for size in (1, 100_000):
        writer.send([np.zeros(size, np.float32), np.zeros(3, np.uint8)])
        first, second = reader.recv()
        torch.from_numpy(first).add_(1)
        second[:] = 2
        assert first.flags.aligned


def test_tensors_are_sent_as_arrays(tmp_path: Path, opened: Opener) -> None:
    """Whatever their strides, and where gradients are wanted."""
    to, at = pair("zpush", "zpull", "ipc", tmp_path)
    reader, writer = opened(at), opened(to)
    weights = torch.arange(6.0).reshape(2, 3).T.requires_grad_()
    writer.write((weights, torch.tensor([True, False])))
    assert same(reader.recv(), [weights.detach().numpy(), np.array([True, False])])


def test_converters_and_transforms_are_applied_in_turn(tmp_path: Path, opened: Opener) -> None:
    """Transforms first; one function for all arrays, or one for each, None for none; tensors with a device."""
    to, at = pair("zpush", "zpull", "ipc", tmp_path)
    writer = opened(to)
    cases: list[tuple[dict[str, Any], list[Any]]] = [
        ({"converters": "torch"}, [((2, 4, 3, 3), torch.uint8), ((2,), torch.int64)]),
        ({"batch_transforms": [lambda x: x[:1], None]}, [((1, 3, 3, 4), np.uint8), ((2,), np.int32)]),
        ({"device": "cpu"}, [((2, 3, 3, 4), torch.uint8), ((2,), torch.int32)]),
        ({"converters": [feedmill.totorch("float32"), None]}, [((2, 4, 3, 3), torch.float32), ((2,), np.int32)]),
    ]
    for arguments, expected in cases:
        with Connection(at, timeout=TIMEOUT, **arguments) as reader:
            writer.send([np.zeros((2, 3, 3, 4), np.uint8), np.zeros(2, np.int32)])
            assert [(tuple(x.shape), x.dtype) for x in reader.recv()] == expected
    with Connection(at, timeout=TIMEOUT, converters=[None] * 3) as reader:
        writer.send(BATCH)
        with pytest.raises(UsageError, match="3 functions for a batch of 2 arrays"):
            reader.recv()


def test_an_iteration_ends_after_total_samples(tmp_path: Path, opened: Opener) -> None:
    """Samples, or batches if they are not counted; `len` says the epoch; the next iteration goes on."""
    to, at = pair("zpush", "zpull", "ipc", tmp_path)
    reader, writer = opened(at, total=5, epoch=77), opened(to)
    assert writer.serve([BATCH] * 6) == 6
    assert [len(list(reader)), len(list(reader.items())), len(reader)] == [3, 3, 77]
    reader.abort()
    with Connection(at, total=2, batch_count=False, timeout=TIMEOUT) as other:
        writer.serve([BATCH] * 2)
        assert len(list(other)) == 2


def test_infos_are_sent_required_and_returned(tmp_path: Path, opened: Opener) -> None:
    """Others than the required ones are an error, and the next batch is read all the same."""
    to, at = pair("zpush", "zpull", "ipc", tmp_path)
    with opened(to, infos=["image", "label"]) as writer, Connection(at, infos=True, timeout=TIMEOUT) as reader:
        writer.send(BATCH)
        arrays, infos = reader.recv()
        assert (len(arrays), infos) == (2, ["image", "label"])
    reader = opened(at, infos=["a", "b"])
    with opened(to) as writer:
        writer.send(BATCH)
    with opened(to, infos=["a", "b"]) as writer:
        writer.send(BATCH)
    with pytest.raises(ProtocolError, match=r"expected infos \['a', 'b'\], got \['', ''\]"):
        reader.recv()
    assert same(reader.recv(), BATCH)


def test_raw_frames_are_handed_out_as_they_came(tmp_path: Path, opened: Opener) -> None:
    """As bytes, unread."""
    to, at = pair("zpush", "zpull", "ipc", tmp_path)
    reader, writer = opened(at, raw=True), opened(to)
    writer.send(BATCH)
    assert reader.recv() == [bytes(frame) for frame in tensorcom.tenbin.encode_list(BATCH)]


def test_what_is_no_batch_is_an_error_and_the_next_one_is_read(tmp_path: Path, opened: Opener) -> None:
    """A hostile sender ends nothing that the caller does not want to end."""
    reader = opened(f"zpull+ipc://{tmp_path}/s")
    with zmq.Context() as context, context.socket(zmq.PUSH) as hostile:
        hostile.connect(f"ipc://{tmp_path}/s")
        for frames in ([b""], [b"", b""], [b"x"], [b"x" * 24, b""], [b"a", b"b", b"c"]):
            hostile.send_multipart(frames)
        hostile.send_multipart([bytes(frame) for frame in tensorcom.tenbin.encode_list(BATCH)])
        for _ in range(5):
            with pytest.raises(ProtocolError, match="tenbin: "):
                reader.recv()
        assert same(reader.recv(), BATCH)


@pytest.mark.parametrize(("send", "receive"), PAIRS)
def test_waits_end(send: str, receive: str, tmp_path: Path, opened: Opener) -> None:
    """Where nothing comes, and where nobody takes it."""
    begun = time.monotonic()
    with pytest.raises(ServerUnavailable, match=r"nothing came for 0\.1 s"):
        opened(f"{receive}+ipc://{tmp_path}/a", timeout=0.1).recv()
    with pytest.raises(ServerUnavailable, match=r"nobody (took a batch|subscribed) for 0\.1 s"):
        opened(f"{send}+ipc://{tmp_path}/b", timeout=0.1).send(BATCH)
    assert 0.2 <= time.monotonic() - begun < 5


def test_a_reader_that_goes_when_it_was_about_to_be_sent_a_batch_is_none(
    tmp_path: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait for another ends in time, too."""
    writer = opened(f"zpush+ipc://{tmp_path}/s", timeout=0.1)
    wait = writer._socket._wait
    readers = iter([None])  # at first there is one

    def waits(event: int, complaint: str) -> None:
        if next(readers, "none"):
            wait(event, complaint)

    monkeypatch.setattr(writer._socket, "_wait", waits)
    writer._socket._socket.sndtimeo = 2000  # for a test that fails, not one that hangs
    with pytest.raises(ServerUnavailable, match="nobody took a batch"):
        writer.send(BATCH)


def test_a_reader_that_does_not_read_is_sent_no_more_than_two_high_water_marks(tmp_path: Path, opened: Opener) -> None:
    """In batches, whatever their size."""
    reader = opened(f"zrpull+ipc://{tmp_path}/s", hwm=2)
    writer = opened(f"zrpush+ipc://{tmp_path}/s", hwm=3, timeout=0.3)
    big = [np.zeros(3_000_000, np.uint8)]
    with pytest.raises(ServerUnavailable):
        writer.serve([big] * 20)
    assert 4 <= writer.rates.messages <= 7  # and what is between the two
    assert len(reader.recv()[0]) == 3_000_000


def test_a_publisher_drops_what_a_slow_reader_has_no_room_for(tmp_path: Path, opened: Opener) -> None:
    """As in tensorcom; it never waits for it."""
    writer = opened(f"zpub+ipc://{tmp_path}/s", hwm=2)
    reader = opened(f"zsub+ipc://{tmp_path}/s", hwm=2, timeout=0.5)
    assert writer.serve([[np.full(1_000_000, i, np.int32)] for i in range(30)]) == 30
    with pytest.raises(ServerUnavailable):
        list(reader)
    assert 1 <= reader.rates.messages < 30


def test_a_publisher_waits_while_nobody_reads(tmp_path: Path, opened: Opener) -> None:
    """What is sent after a subscriber has come reaches it; soon after the last has gone, it waits again."""
    url = f"+ipc://{tmp_path}/s"
    writer = opened(f"zpub{url}")
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(writer.serve, [BATCH] * 3)
        time.sleep(0.1)
        assert not sent.done()
        with Connection(f"zsub{url}", total=6, timeout=TIMEOUT) as reader:
            assert len(list(reader)) == 3
        sent.result()
    writer._socket._timeout = 0.1
    slowly = (time.sleep(0.02) or BATCH for _ in range(100))  # type: ignore[func-returns-value]
    with pytest.raises(ServerUnavailable, match="nobody subscribed"):
        writer.serve(slowly)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([np.zeros(2)], "an array of float64: send 32-bit numbers, or give allow64=True"),
        ([np.zeros(2, "U1")], "tenbin has no dtype"),
        ([torch.zeros(2, dtype=torch.bfloat16)], "torch.bfloat16 is no array"),
        ([[1, 2]], "list is no array"),
        (np.zeros(2), "a batch is a list or tuple of arrays or tensors, not ndarray"),
        ([], "a batch has one array or tensor at least"),
    ],
)
def test_what_cannot_be_sent_is_refused(data: Any, says: str, tmp_path: Path, opened: Opener) -> None:
    """With what could be."""
    with pytest.raises(UsageError, match=says):
        opened(f"zpub+ipc://{tmp_path}/s").send(data)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"hwm": 0}, "hwm=0"),
        ({"timeout": 0}, "timeout=0: expected a positive number"),
        ({"timeout": "1"}, "timeout='1'"),
        ({"total": 0}, "total=0"),
        ({"epoch": -1}, "epoch=-1"),
        ({"report": 0.5}, "report=0.5"),
        ({"converters": "jax"}, "converters='jax'"),
        ({"device": "nowhere"}, "device='nowhere'"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, Any], says: str, tmp_path: Path) -> None:
    """By name, before anything is opened."""
    with pytest.raises(UsageError, match=says):
        Connection(f"zpull+ipc://{tmp_path}/s", **arguments)


def test_the_wrong_end_and_the_wrong_place_are_refused(tmp_path: Path, opened: Opener) -> None:
    """Senders do not receive, and addresses that are taken cannot be bound to."""
    writer = opened("zpub://127.0.0.1:*")
    assert repr(writer).startswith("<Connection zpub://127.0.0.1:*: 0 batches")
    with pytest.raises(UsageError, match="sends; to receive"):
        writer.recv()
    with pytest.raises(UsageError, match=r"^5 is no iterable; give batches to send"):
        publish(5, f"zpub+ipc://{tmp_path}/p")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="infos=True: expected the texts"):
        Connection("zpub://127.0.0.1:*", infos=True)
    with pytest.raises(UsageError, match="receives; to send"):
        opened(f"zpull+ipc://{tmp_path}/s").send(BATCH)
    taken = writer.endpoints[0].replace("tcp", "zpub")
    with pytest.raises(UsageError, match=f"cannot bind {taken}: Address already in use"):
        Connection(taken)
    writer.close()
    writer.close()
    with pytest.raises(UsageError, match="the connection is closed"):
        writer.send(BATCH)


def test_closing_waits_for_readers_and_no_longer_than_the_time_out(tmp_path: Path, opened: Opener) -> None:
    """A reader that never reads holds up `close` for that long, and `abort` not at all."""
    reader = opened(f"zpull+ipc://{tmp_path}/s", hwm=1)
    big = [np.zeros(4_000_000, np.uint8)]
    for close, least, most in ((Connection.close, 0.3, 5.0), (Connection.abort, 0.0, 0.25)):
        writer = opened(f"zpush+ipc://{tmp_path}/s", timeout=0.3)
        writer.serve([big] * 5)
        begun = time.monotonic()
        close(writer)
        assert least <= time.monotonic() - begun < most
    reader.recv()


def test_rates_are_told_in_the_log(tmp_path: Path, opened: Opener, caplog: pytest.LogCaptureFixture) -> None:
    """Every so many samples."""
    to, at = pair("zpush", "zpull", "ipc", tmp_path)
    reader, writer = opened(at, total=8), opened(to, report=4)
    with caplog.at_level("INFO", "feedmill"):
        writer.serve([BATCH] * 4)
        assert [f"{to}: {n} batches" in record.getMessage() for record, n in zip(caplog.records, (2, 4), strict=True)]
        caplog.clear()
        list(reader.items(report=3))
    assert len(caplog.records) == 2


def test_rates_leave_out_the_first_message() -> None:
    """The time before it is not the stream's."""
    times = iter([10.0, 11.0, 12.0, 12.0])
    rates = Rates(lambda: next(times))
    for _ in range(3):
        rates.add(32, 5_000_000)
    assert rates.summary() == "3 batches, 1.0/s; 32 samples/s; 5.0 MB/s"
    assert Rates().summary().startswith("0 batches, 0.0/s")


def test_publish_serves_any_iterable_and_counts(tmp_path: Path, opened: Opener) -> None:
    """64-bit labels included; a reader that goes away does not end it."""
    to, at = pair("zrpush", "zrpull", "tcp", tmp_path)
    gone = threading.Event()

    def batches() -> Iterator[tuple[torch.Tensor, ...]]:
        yield torch.zeros(4, 2), torch.arange(4)
        assert gone.wait(TIMEOUT)
        for _ in range(30):
            time.sleep(0.01)
            yield torch.zeros(4, 2), torch.arange(4)

    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(publish, batches(), to, timeout=TIMEOUT)
        with Connection(at, timeout=TIMEOUT) as first:
            assert first.recv()[1].dtype == np.int64
        gone.set()
        reader = opened(at, timeout=1.0)
        with pytest.raises(ServerUnavailable):
            list(reader)
        assert sent.result() == 31
    assert 20 <= reader.rates.messages <= 30


def test_ctrl_c_ends_publish(tmp_path: Path) -> None:
    """While it waits for its first reader; it says how many were sent."""
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    assert publish([BATCH], f"zpub+ipc://{tmp_path}/s") == 0
    timer.join()
