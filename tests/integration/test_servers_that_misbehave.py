"""What a client makes of servers that are not there, not what was asked for, or hostile: one clear error, soon."""

import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import zmq

import feedmill
from feedmill_protocol import codec
from feedmill_protocol.messages import Batch, Fail, Get, Hello, Message, Ping, Reject, Skipped
from feedmill_protocol.tensors import TensorSpec
from integration.epochs import TIMEOUT
from integration.fakes import COUNTS, WELCOME, FakeServer, Frames, batch, block, frames, honest, sealed, silence
from integration.fleet import Data, Fleet
from integration.processes import wait_until

PROMPT = 10.0
"""Seconds within which an error that needs no time-out must come; most of it is for a busy machine."""


@pytest.fixture
def free_port() -> int:
    """Return a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


def test_a_port_where_nobody_listens_raises_within_the_timeout(free_port: int) -> None:
    """ServerUnavailable names the endpoint and what is known of it."""
    url = f"tcp://127.0.0.1:{free_port}"
    begun = time.monotonic()
    with pytest.raises(feedmill.ServerUnavailable, match="start one with 'feedmill serve'") as raised:
        feedmill.connect(url, timeout=1.0)
    assert 1.0 <= time.monotonic() - begun < 3.0
    assert raised.value.servers == {url: "no connection"}
    assert raised.value.timeout == 1.0
    assert isinstance(raised.value, TimeoutError)


def test_a_name_that_does_not_resolve_raises_within_the_timeout() -> None:
    """The error says that it is the name."""
    begun = time.monotonic()
    with pytest.raises(feedmill.ServerUnavailable, match=r"does not resolve"):
        feedmill.connect("tcp://nowhere.invalid:7880", timeout=1.0)
    assert time.monotonic() - begun < 10.0


def test_something_else_that_listens_raises_within_the_timeout() -> None:
    """A port where no ZeroMQ is spoken is no server."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        url = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        begun = time.monotonic()
        with pytest.raises(feedmill.ServerUnavailable):
            feedmill.connect(url, timeout=1.0)
        assert time.monotonic() - begun < 3.0


def test_a_server_that_never_answers_raises_within_the_timeout() -> None:
    """A connection alone is no sign of life."""
    begun = time.monotonic()
    with FakeServer(silence) as fake, pytest.raises(feedmill.ServerUnavailable, match="connected, but no answer yet"):
        feedmill.connect(fake.url, timeout=1.0)
    assert time.monotonic() - begun < 3.0


def test_a_server_that_pongs_but_makes_no_progress_raises_within_the_timeout() -> None:
    """Progress is what counts, not talk."""

    def answer(message: Message, payload: bytes) -> Sequence[Frames]:
        return [] if isinstance(message, Get) else honest(message, payload)

    with FakeServer(answer) as fake, feedmill.connect(fake.url, timeout=1.0) as feed:
        begun = time.monotonic()
        with pytest.raises(feedmill.ServerUnavailable, match="no server made progress"):
            next(feed.batches())
        assert 1.0 <= time.monotonic() - begun < 3.0


def test_the_honest_fake_works() -> None:
    """The hostile ones below differ from this one in one thing each."""
    with FakeServer(honest) as fake, feedmill.connect(fake.url, timeout=TIMEOUT) as feed:
        assert [len(b.keys) for b in feed.batches()] == [8] * 5


def test_a_stream_that_is_not_there_is_named_with_those_that_are(fleet: Fleet, data: Data) -> None:
    """A typing error shows at once, not after a time-out."""
    begun = time.monotonic()
    with pytest.raises(feedmill.StreamMismatch) as raised:
        feedmill.connect(fleet["two"], stream="picture", timeout=TIMEOUT)
    assert time.monotonic() - begun < PROMPT
    assert "'picture'" in str(raised.value)
    for stream in data.sets:
        assert stream in str(raised.value)


def test_a_server_with_several_streams_asks_which(fleet: Fleet) -> None:
    """Leaving `stream` out is fine where there is but one."""
    with pytest.raises(feedmill.StreamMismatch, match=r"several streams: pictures, .*stream="):
        feedmill.connect(fleet["two"], timeout=TIMEOUT)


def test_servers_with_different_data_are_told_apart(fleet: Fleet) -> None:
    """Two servers of one stream must agree on it. It may be found out before the first batch is asked for, or then."""

    def iterate() -> None:
        with feedmill.connect([fleet["two"], fake.url], stream="slow", timeout=TIMEOUT) as feed:
            list(feed)

    fake = FakeServer(_other_data("slow"))
    with fake, pytest.raises(feedmill.StreamMismatch, match="must serve the same shards"):
        iterate()


def test_what_ended_a_feed_while_nobody_iterated_is_told_at_the_next_iteration() -> None:
    """Once. The iteration after that looks for servers again, and goes on if they agree by then."""

    def late(message: Message, payload: bytes) -> Sequence[Frames]:
        if isinstance(message, Hello) and sum(isinstance(heard, Hello) for heard in other.heard) == 1:
            return []  # the honest one comes first
        return _other_data("train")(message, payload)

    with FakeServer(honest) as server:
        with FakeServer(late) as other:
            feed = feedmill.connect([server.url, other.url], timeout=TIMEOUT)
            wait_until(lambda: not feed._connection.usable, PROMPT, "the servers are found to differ")
        with pytest.raises(feedmill.StreamMismatch, match="must serve the same shards"):
            list(feed)
        assert len(list(feed)) == len(feed)
        feed.close()


def test_what_is_wrong_with_a_batch_that_nobody_wants_any_more_is_not_told() -> None:
    """The iteration was left before it came to that batch, and the next epoch has others."""

    def answer(message: Message, payload: bytes) -> Sequence[Frames]:
        if isinstance(message, Get) and (message.epoch, message.batch) == (0, 2):
            fail = Fail(epoch=0, batch=2, attempt=message.attempt, retryable=False, reason="bad", shard="s", key="k")
            return [frames(fail)]
        return honest(message, payload)

    with FakeServer(answer) as server, feedmill.connect(server.url, timeout=TIMEOUT) as feed:
        next(iter(feed))
        wait_until(lambda: not feed._connection.usable, PROMPT, "the bad batch has ended the connection")
        feed.set_epoch(1)
        assert len(list(feed)) == len(feed)
        feed.set_epoch(0)
        with pytest.raises(feedmill.SampleError):
            list(feed)


def _other_data(stream: str) -> Callable[[Message, bytes], Sequence[Frames]]:
    def answer(message: Message, payload: bytes) -> Sequence[Frames]:
        if isinstance(message, Hello):
            welcome = replace(WELCOME, stream=stream, catalog="other")
            return [frames(welcome, COUNTS.astype("<u4").tobytes())]
        return honest(message, payload)

    return answer


def _version_two(message: Message, payload: bytes) -> Sequence[Frames]:
    return [sealed({"v": 2, "type": "WELCOME", "streams": []})]


def _reject_version(message: Message, payload: bytes) -> Sequence[Frames]:
    return [
        frames(Reject(code="version", reason="the peer speaks version 1 of feedmill's protocol, this side version 2"))
    ]


@pytest.mark.parametrize("answer", [_version_two, _reject_version], ids=["speaks it", "says so"])
def test_a_server_of_another_protocol_version_is_told(
    answer: Callable[[Message, bytes], Sequence[Frames]],
) -> None:
    """Both versions and the remedy are in the error."""
    begun = time.monotonic()
    with FakeServer(answer) as fake, pytest.raises(feedmill.ProtocolError, match=r"version") as raised:
        feedmill.connect(fake.url, timeout=TIMEOUT)
    assert time.monotonic() - begun < PROMPT
    assert fake.url in str(raised.value)
    assert "1" in str(raised.value)
    assert "2" in str(raised.value)


def test_a_client_of_another_protocol_version_is_rejected(fleet: Fleet) -> None:
    """A real server answers a HELLO of version 9 with REJECT, code "version"."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.connect(fleet["two"])
        dealer.send_multipart(sealed({"v": 9, "type": "HELLO", "stream": ""}))
        assert dealer.poll(10_000)
        reject = codec.decode(dealer.recv_multipart()[0])
        dealer.linger = 0
    assert isinstance(reject, Reject)
    assert reject.code == "version"
    assert "version 9" in reject.reason


@pytest.mark.parametrize(
    "garbage",
    [[b""], [b"\xc1"], [b"GET / HTTP/1.1"], [b"\x80" * 20_000], sealed({"v": 1, "type": "PONG"}), [b"x"] * 50],
    ids=["empty", "no msgpack", "http", "long", "server's", "frames"],
)
def test_a_server_survives_garbage_and_says_that_it_does_not_understand(fleet: Fleet, garbage: list[bytes]) -> None:
    """Anybody can reach a port; nobody can stop the server through it."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.connect(fleet["two"])
        dealer.send_multipart(garbage)
        assert dealer.poll(10_000)
        reject = codec.decode(dealer.recv_multipart()[0])
        assert isinstance(reject, Reject)
        assert reject.code == ("protocol" if len(garbage) == 2 else "damaged")
        dealer.send_multipart(frames(Hello(stream="slow")))
        assert dealer.poll(10_000)
        assert codec.decode(dealer.recv_multipart()[0]).type == "WELCOME"
        dealer.linger = 0


def _wrong_shape(get: Get, payload: bytes) -> Sequence[Frames]:
    answer = batch(get, payload, tensors=(TensorSpec("int64", (8, 2)),))
    return [frames(answer, block(answer))]


def _wrong_dtype(get: Get, payload: bytes) -> Sequence[Frames]:
    answer = batch(get, payload, tensors=(TensorSpec("int32", (8,)),))
    return [frames(answer, block(answer))]


def _too_few_rows(get: Get, payload: bytes) -> Sequence[Frames]:
    answer = batch(get, payload, tensors=(TensorSpec("int64", (7,)),), keys=13)
    return [frames(answer, block(answer))]


def _too_few_keys(get: Get, payload: bytes) -> Sequence[Frames]:
    answer = batch(get, payload, keys=13)
    return [frames(answer, block(answer)[:-2])]


def _no_keys(get: Get, payload: bytes) -> Sequence[Frames]:
    answer = batch(get, payload, keys=0)
    return [frames(answer, block(answer)[:-15])]


def _skips_unasked(get: Get, payload: bytes) -> Sequence[Frames]:
    answer = batch(get, payload, tensors=(TensorSpec("int64", (7,)),), keys=13, missing=1)
    return [frames(answer, block(answer))]


def _names_more_than_it_skips(get: Get, payload: bytes) -> Sequence[Frames]:
    answer = batch(get, payload, skipped=(Skipped("s", "k", "r"),))
    return [frames(answer, block(answer))]


def _unasked(get: Get, payload: bytes) -> Sequence[Frames]:
    answer = batch(get, payload, attempt=get.attempt + 1000)
    return [frames(answer, block(answer))]


def _attempt_zero(get: Get, payload: bytes) -> Sequence[Frames]:
    answer = batch(get, payload, attempt=0)
    return [frames(answer, block(answer))]


def _garbage(get: Get, payload: bytes) -> Sequence[Frames]:
    return [[b"\xc1\xc1\xc1"]]


def _no_msgpack(get: Get, payload: bytes) -> Sequence[Frames]:
    header = b"\xc1\xc1\xc1"
    return [[header, struct.pack("<QQ", codec.checksum(header), codec.checksum())]]


def _flipped(get: Get, payload: bytes) -> Sequence[Frames]:
    answer = batch(get, payload)
    header, seal, sent = frames(answer, block(answer))
    return [[header, seal, bytes([sent[0] ^ 1]) + sent[1:]]]


def _empty(get: Get, payload: bytes) -> Sequence[Frames]:
    return [[b""]]


def _too_short(get: Get, payload: bytes) -> Sequence[Frames]:
    answer = batch(get, payload)
    return [frames(answer, block(answer)[:-1])]


def _too_long(get: Get, payload: bytes) -> Sequence[Frames]:
    answer = batch(get, payload)
    return [frames(answer, block(answer) + b"x")]


def _much_too_long(get: Get, payload: bytes) -> Sequence[Frames]:
    answer = batch(get, payload)
    return [[*frames(answer, block(answer)), bytes(100_000), bytes(100_000)]]


def _no_payload(get: Get, payload: bytes) -> Sequence[Frames]:
    return [frames(batch(get, payload))]


def _huge(get: Get, payload: bytes) -> Sequence[Frames]:
    return [frames(batch(get, payload, tensors=(TensorSpec("float64", (2**40, 2**20)),)))]


def _clients_message(get: Get, payload: bytes) -> Sequence[Frames]:
    return [frames(Ping())]


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (_wrong_shape, r"BATCH has tensors .*, where .* were announced"),
        (_wrong_dtype, r"BATCH has tensors .*, where .* were announced"),
        (_too_few_rows, r"BATCH has tensors .*, where .* were announced"),
        (_too_few_keys, r"keys"),
        (_no_keys, r"keys"),
        (_skips_unasked, r"BATCH lacks 1 samples, though none may be skipped"),
        (_names_more_than_it_skips, r"BATCH lacks 0 samples, but names 1"),
        (_unasked, r"which was never made"),
        (_attempt_zero, r"which was never made"),
        (_garbage, r"8 messages in a row came damaged"),
        (_no_msgpack, r"not msgpack"),
        (_empty, r"8 messages in a row came damaged"),
        (_too_short, r"8 messages in a row came damaged"),
        (_too_long, r"8 messages in a row came damaged"),
        (_much_too_long, r"8 messages in a row came damaged"),
        (_no_payload, r"8 messages in a row came damaged"),
        (_flipped, r"8 messages in a row came damaged"),
        (_huge, r"exceeds"),
        (_clients_message, r"PING is no message from a server"),
    ],
    ids=lambda value: value.__name__.strip("_").replace("_", " ") if callable(value) else "",
)
def test_a_server_that_breaks_the_protocol_is_named_and_left(
    lie: Callable[[Get, bytes], Sequence[Frames]], said: str
) -> None:
    """ProtocolError with the endpoint and what is wrong; never other tensors, never a hang."""

    def answer(message: Message, payload: bytes) -> Sequence[Frames]:
        return lie(message, payload) if isinstance(message, Get) else honest(message, payload)

    begun = time.monotonic()
    with FakeServer(answer) as fake, feedmill.connect(fake.url, timeout=TIMEOUT) as feed:
        with pytest.raises(feedmill.ProtocolError, match=said) as raised:
            next(feed.batches())
        assert fake.url in str(raised.value)
    assert time.monotonic() - begun < PROMPT


@pytest.mark.parametrize(
    "payload", [COUNTS.astype("<u4").tobytes()[:-1], COUNTS.astype("<u4").tobytes() + b"more", b""]
)
def test_a_catalog_of_the_wrong_size_is_refused(payload: bytes) -> None:
    """WELCOME says how many counts follow."""

    def answer(_message: Message, _payload: bytes) -> Sequence[Frames]:
        return [frames(WELCOME, payload)]

    with FakeServer(answer) as fake, pytest.raises(feedmill.ProtocolError, match="came damaged; either this is no"):
        feedmill.connect(fake.url, timeout=TIMEOUT)


def test_what_comes_damaged_now_and_then_is_asked_again() -> None:
    """The epoch is whole, and the feed says how often."""
    spoilt: list[int] = []

    def answer(message: Message, payload: bytes) -> Sequence[Frames]:
        if isinstance(message, Get) and len(spoilt) < 4 and len(spoilt) % 2 == message.batch % 2:
            spoilt.append(message.batch)
            return _flipped(message, payload) if message.batch % 2 else _garbage(message, payload)
        return honest(message, payload)

    with FakeServer(answer) as fake, feedmill.connect(fake.url, timeout=TIMEOUT) as feed:
        assert [b.index for b in feed.batches()] == list(range(5))
        fake.wait_idle()
        assert feed.stats().damaged == len(spoilt) == 4


def test_a_batch_before_any_welcome_is_refused() -> None:
    """Nothing can have been asked for yet."""

    def answer(_message: Message, _payload: bytes) -> Sequence[Frames]:
        unasked = Batch(epoch=0, batch=0, attempt=1, tensors=(), keys=0)
        return [frames(unasked)]

    with FakeServer(answer) as fake, pytest.raises(feedmill.ProtocolError, match="BATCH before WELCOME"):
        feedmill.connect(fake.url, timeout=TIMEOUT)


def test_the_second_of_two_equal_answers_is_dropped() -> None:
    """Duplicates happen to honest servers; they are counted, and harm nothing."""

    def answer(message: Message, payload: bytes) -> Sequence[Frames]:
        return [*honest(message, payload)] * (2 if isinstance(message, Get) else 1)

    with FakeServer(answer) as fake, feedmill.connect(fake.url, timeout=TIMEOUT) as feed:
        assert [b.index for b in feed.batches()] == list(range(5))
        fake.wait_idle()
        assert feed.stats().duplicates >= 5


def test_prefetch_bounds_what_is_asked_for() -> None:
    """Batches that are held and those that are under way are never more than `prefetch`."""
    with FakeServer(honest) as fake, feedmill.connect(fake.url, prefetch=3, timeout=TIMEOUT) as feed:
        iteration = feed.batches()
        for consumed in range(1, 3):
            next(iteration)
            fake.wait_idle()
            assert len(fake.gets) <= consumed + 3
        assert len(fake.gets) >= 3


def test_an_epoch_that_is_left_is_cancelled() -> None:
    """What was asked for and is no longer wanted is not made."""

    def answer(message: Message, payload: bytes) -> Sequence[Frames]:
        return [] if isinstance(message, Get) and message.batch > 0 else honest(message, payload)

    with FakeServer(answer) as fake, feedmill.connect(fake.url, prefetch=3, timeout=TIMEOUT) as feed:
        for _ in feed:
            break
        fake.wait_idle()
        feed.set_epoch(7)
        assert next(feed.batches()).epoch == 7
        fake.wait_idle()
        left = {(get.epoch, get.batch) for get in fake.gets if get.epoch == 0 and get.batch > 0}
        assert left
        assert left <= {(cancel.epoch, cancel.batch) for cancel in fake.cancels}
