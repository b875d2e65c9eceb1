from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from feedmill_protocol import limits, spans
from feedmill_protocol.errors import ProtocolError
from feedmill_protocol.messages import (
    Batch,
    Bye,
    Cancel,
    Drain,
    Fail,
    Get,
    Hello,
    Message,
    Ping,
    Pong,
    Reject,
    Skipped,
    Welcome,
)
from feedmill_protocol.tensors import FieldSpec, TensorSpec, offsets
from feedmill_server import broker
from feedmill_server.broker import CLIENT_SILENCE, Bad, Broker, Reply, Stream, Work
from feedmill_server.tally import BadSample

FIELDS = (FieldSpec("x", "float32", (4,)), FieldSpec("n", "int64", ()))
COUNTS = np.array([100, 400], np.uint32)
ANN, BOB, EVE = b"ann", b"bob", b"eve"

Sample = tuple[int, int]


def name(shard: int, index: int) -> str:
    return f"{shard}:{index}"


def stream(title: str = "train", number: int = 0) -> Stream:
    return Stream(
        number=number,
        name=title,
        fields=FIELDS,
        batch_size=32,
        shards=("a.tar", "b.tar"),
        counts=COUNTS,
        catalog="catalog",
        fingerprint=f"{title}-print",
    )


def nbytes(samples: int) -> int:
    return offsets(f.rows(samples) for f in FIELDS)[1]


@dataclass(eq=False)
class Memory:
    """A slot that remembers which sample was put into which row."""

    nbytes: int
    pins: int = 0
    rows: list[Sample | None] = field(default_factory=list)

    def compact(self, fields: Sequence[FieldSpec], samples: int, missing: Sequence[int]) -> None:
        assert (tuple(fields), samples) == (FIELDS, len(self.rows))
        assert list(missing) == sorted(set(missing))
        self.rows = [sample for row, sample in enumerate(self.rows) if row not in missing]

    def checksum(self, nbytes: int, trailer: bytes) -> int:
        return hash((nbytes, trailer, *self.rows))


class Pool:
    """Memory that is lent out, and whose misuse is an error."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.lent: list[Memory] = []

    @property
    def used(self) -> int:
        return sum(slot.nbytes for slot in self.lent)

    def take(self, nbytes: int) -> Memory | None:
        if self.used + nbytes > self.max_bytes:
            return None
        self.lent.append(Memory(nbytes))
        return self.lent[-1]

    def give(self, slot: Memory) -> None:
        assert not slot.pins
        self.lent.remove(slot)


@dataclass(eq=False)
class Scene:
    """A broker, its clients, and workers of which each does what it is told."""

    memory: int = nbytes(32) * 100
    streams: Sequence[Stream] = field(default_factory=lambda: [stream()])
    now: float = 0.0
    caching: bool = True

    def __post_init__(self) -> None:
        self.pool = Pool(self.memory)
        self.broker: Broker[Memory] = Broker(
            self.streams, self.pool, server="host", boot="boot", workers=3, caching=self.caching
        )

    def say(self, client: bytes, message: Message, payload: bytes = b"") -> None:
        self.broker.receive(client, message, payload, self.now)

    def get(
        self,
        client: bytes,
        batch: int,
        *,
        shard: int = 1,
        start: int = 0,
        samples: int = 16,
        on_error: str = "raise",
        attempt: int = 1,
        title: str = "train",
    ) -> None:
        span = np.array([[shard, start, start + samples]], np.uint32)
        get = Get(
            stream=title,
            fingerprint=f"{title}-print",
            seed=5,
            epoch=2,
            batch=batch,
            spans=1,
            on_error=on_error,
            attempt=attempt,
        )
        self.say(client, get, spans.pack(span))

    def cancel(self, client: bytes, batch: int) -> None:
        self.say(client, Cancel(epoch=2, batch=batch))

    def part(self, worker: int = 1) -> Work[Memory]:
        """Give a worker its next part, which there must be; it begins to write at once."""
        work = self.broker.next_part(worker)
        assert work is not None
        slot = work.build.slot
        assert slot is not None
        assert slot.pins == 0
        slot.rows = slot.rows or [None] * work.build.rows
        slot.rows[work.first : work.first + work.rows] = [None] * work.rows
        return work

    def done(self, work: Work[Memory], worker: int = 1, *, bad: Sequence[int] = ()) -> None:
        """Have a worker finish the first part it has in hand, except for the bad rows."""
        slot = work.build.slot
        assert slot is not None
        samples = [(shard, index) for shard, index in work.samples.tolist()]
        slot.rows[work.first : work.first + work.rows] = samples
        reports = [Bad(row, samples[row - work.first][0], name(*samples[row - work.first]), "broken") for row in bad]
        self.broker.done(worker, [name(*sample) for sample in samples], reports)

    def finish(self) -> None:
        """Have one worker do all there is to do."""
        while work := self.broker.next_part(0):
            slot = work.build.slot
            assert slot is not None
            slot.rows = slot.rows or [None] * work.build.rows
            self.done(work, 0)

    def sent(self) -> list[tuple[bytes, Message]]:
        """Send all replies; return them."""
        sent = []
        while self.broker.replies:
            reply = self.broker.replies.popleft()
            sent.append((reply.client, reply.message))
            if reply.slot is not None:
                assert isinstance(reply.message, Batch)
                assert [name(*row) for row in reply.slot.rows if row] == reply.trailer.decode().split("\0")
            self.broker.sent(reply)
        return sent

    def types(self) -> list[tuple[bytes, str]]:
        return [(client, message.type) for client, message in self.sent()]

    def is_clean(self) -> bool:
        """Whether nothing is in the making, and no memory in use but by the cache."""
        broker = self.broker
        cached = [build.slot for build in broker._builds.values()]
        return (
            not broker._building
            and not broker.queued
            and not broker.open
            and all(build.done and not build.waiters for build in broker._builds.values())
            and Counter(map(id, cached)) == Counter(map(id, self.pool.lent))
        )


@pytest.fixture
def scene() -> Scene:
    return Scene()


# Clients.


def test_a_hello_is_answered_with_all_that_a_client_needs(scene: Scene) -> None:
    """WELCOME describes the stream; the counts follow unless the client has them."""
    scene.say(ANN, Hello(stream="train"))
    reply = scene.broker.replies[0]
    assert reply.message == Welcome(
        server="host",
        boot="boot",
        stream="train",
        fields=FIELDS,
        batch_size=32,
        catalog="catalog",
        fingerprint="train-print",
        shards=2,
        workers=3,
        counts=True,
    )
    assert reply.trailer == COUNTS.astype("<u4").tobytes()
    scene.sent()
    scene.say(ANN, Hello(stream="", catalog="catalog"))
    ((_, welcome),) = scene.sent()
    assert isinstance(welcome, Welcome)
    assert (welcome.stream, welcome.counts) == ("train", False)


def test_a_stream_must_be_named_if_there_are_several() -> None:
    """The refusal names those that there are."""
    scene = Scene(streams=[stream("train"), stream("val", 1)])
    scene.say(ANN, Hello())
    scene.say(ANN, Hello(stream="test"))
    scene.say(ANN, Hello(stream="val"))
    first, second, third = (message for _, message in scene.sent())
    assert first == Reject(code="stream", reason="this server has several streams: train, val; name one with stream=")
    assert second == Reject(code="stream", reason="there is no stream 'test' here; there is train, val")
    assert isinstance(third, Welcome)
    assert third.stream == "val"


def test_a_ping_tells_progress_and_queue(scene: Scene) -> None:
    """Progress counts finished parts, the queue those that wait, begun or not; who has none of them is idle."""
    scene.get(ANN, 0, samples=40)
    scene.get(ANN, 1, samples=17)
    scene.say(ANN, Ping())
    scene.done(scene.part())
    scene.say(ANN, Ping())
    scene.part()
    scene.say(ANN, Ping())
    assert scene.sent() == [
        (ANN, Pong(progress=0, queue=5, idle=3)),
        (ANN, Pong(progress=1, queue=4, idle=3)),
        (ANN, Pong(progress=1, queue=4, idle=2)),
    ]


def test_what_only_servers_say_is_a_protocol_error(scene: Scene) -> None:
    """A client that sends a PONG is no client."""
    with pytest.raises(ProtocolError, match=r"^PONG is no message from a client$"):
        scene.say(ANN, Pong(progress=0, queue=0))


def test_a_reason_for_a_refusal_is_cut_to_size(scene: Scene) -> None:
    """Whatever is wrong, the header stays small."""
    scene.broker.refuse(ANN, "protocol", "x" * 9999)
    ((_, reject),) = scene.sent()
    assert isinstance(reject, Reject)
    assert len(reject.reason) <= limits.REASON_BYTES


# One batch.


def test_a_batch_is_built_in_parts_and_sent_once(scene: Scene) -> None:
    """Parts are of 16 samples at most; the last to be done completes the batch, whatever the order."""
    scene.get(ANN, 7, start=3, samples=40, attempt=9)
    parts = [scene.part(worker) for worker in (1, 2, 3)]
    assert scene.broker.next_part(4) is None
    assert [(work.first, work.rows) for work in parts] == [(0, 16), (16, 16), (32, 8)]
    assert parts[1].samples.tolist() == [[1, index] for index in range(19, 35)]
    for worker in (3, 1, 2):
        assert not scene.broker.replies
        scene.done(parts[worker - 1], worker)
    reply = scene.broker.replies[0]
    keys = [name(1, index) for index in range(3, 43)]
    assert reply.message == Batch(
        epoch=2,
        batch=7,
        attempt=9,
        tensors=(TensorSpec("float32", (40, 4)), TensorSpec("int64", (40,))),
        keys=len("\0".join(keys)),
    )
    assert reply.trailer.decode().split("\0") == keys
    assert reply.slot is parts[0].build.slot
    assert scene.types() == [(ANN, "BATCH")]
    broker = scene.broker
    assert (broker.tally.parts, broker.tally.batches, broker.tally.samples, broker.tally.cache_hits) == (3, 1, 40, 0)
    assert scene.is_clean()


def test_a_sample_may_come_twice(scene: Scene) -> None:
    """Rows follow the spans, not the shard."""
    get = Get(stream="train", fingerprint="train-print", seed=0, epoch=0, batch=0, spans=3)
    scene.say(ANN, get, spans.pack(np.array([[1, 5, 7], [0, 0, 1], [1, 5, 6]], np.uint32)))
    assert scene.part().samples.tolist() == [[1, 5], [1, 6], [0, 0], [1, 5]]


def test_all_workers_work_on_the_oldest_batch(scene: Scene) -> None:
    """The second is begun when the first has no parts left."""
    scene.get(ANN, 0, samples=48)
    scene.get(ANN, 1, start=100, samples=32)
    assert [scene.part(worker).build.get.batch for worker in range(5)] == [0, 0, 0, 1, 1]


def test_a_worker_may_have_several_parts_in_hand(scene: Scene) -> None:
    """They are reported in the order in which they were given."""
    scene.get(ANN, 0, samples=32)
    first, second = scene.part(), scene.part()
    assert scene.broker.assigned(1) == 2
    assert scene.broker.assigned(2) == 0
    scene.done(first)
    assert (scene.broker.assigned(1), first.build.running) == (1, 1)
    scene.done(second)
    assert scene.types() == [(ANN, "BATCH")]


# Equal names.


def test_equal_names_are_built_once(scene: Scene) -> None:
    """Whether it is queued, being built or done, a name is built once and sent to all who asked."""
    scene.get(ANN, 0)
    scene.get(BOB, 0)
    work = scene.part()
    scene.get(EVE, 4, attempt=3)
    assert scene.broker.next_part(2) is None
    scene.done(work)
    assert scene.types() == [(ANN, "BATCH"), (BOB, "BATCH"), (EVE, "BATCH")]
    scene.get(ANN, 1, attempt=8)
    ((_, batch),) = scene.sent()
    assert isinstance(batch, Batch)
    assert (batch.batch, batch.attempt) == (1, 8)
    assert (scene.broker.tally.cache_hits, scene.broker.tally.parts) == (1, 1)


@pytest.mark.parametrize("other", [{"start": 1}, {"samples": 15}, {"shard": 0}, {"on_error": "skip"}])
def test_other_names_are_other_batches(scene: Scene, other: dict[str, int]) -> None:
    """Spans and on_error are part of a name."""
    scene.get(ANN, 0)
    scene.finish()
    scene.get(ANN, 1, **other)  # type: ignore[arg-type]
    assert scene.broker.tally.cache_hits == 0
    assert scene.broker.queued == 1


def test_asking_again_is_answered_once_with_the_last_attempt(scene: Scene) -> None:
    """A client that repeats itself on one connection gets one answer."""
    scene.get(ANN, 0, attempt=1)
    scene.get(ANN, 0, attempt=2)
    scene.finish()
    ((_, batch),) = scene.sent()
    assert isinstance(batch, Batch)
    assert batch.attempt == 2


def test_asking_for_something_else_under_an_open_number_takes_its_place(scene: Scene) -> None:
    """What was asked for last is owed, never the samples that were asked for first."""
    scene.get(ANN, 0, start=0)
    scene.get(ANN, 0, start=50, attempt=2)
    assert scene.broker.queued == 1
    scene.finish()
    reply = scene.broker.replies[0]
    assert reply.trailer.startswith(b"1:50\0")
    assert scene.types() == [(ANN, "BATCH")]
    assert scene.is_clean()


def test_who_joined_a_request_has_it_in_his_own_order_when_the_other_cancels(scene: Scene) -> None:
    """Oldest first, whoever asked before."""
    scene.get(ANN, 0, start=0)
    scene.get(BOB, 0, start=0)
    scene.get(BOB, 1, start=50)
    scene.cancel(ANN, 0)
    begun = [scene.part().samples[0, 1] for _ in range(2)]
    assert begun == [0, 50]


# Memory.


def test_what_is_on_its_way_to_a_client_counts_when_it_says_goodbye_and_comes_again() -> None:
    """It has its share of the memory, however often it says so; and nothing is left when that has left."""
    scene = Scene(memory=nbytes(16) * 8)
    scene.get(BOB, 999, start=5)
    scene.finish()
    scene.sent()
    for number in range(20):
        scene.get(ANN, number, start=number)
        scene.finish()
        scene.say(ANN, Bye())
    assert 4 <= sum(reply.slot is not None for reply in scene.broker.replies) <= 5
    scene.say(ANN, Ping())
    scene.sent()
    assert scene.broker.demand() == [(BOB, 0, 0), (ANN, 0, 0)]


def test_the_cache_gives_way_to_new_batches_the_least_recently_wanted_first() -> None:
    """A hit renews a batch."""
    scene = Scene(memory=3 * nbytes(16))
    for batch in range(3):
        scene.get(ANN, batch, start=16 * batch)
    scene.finish()
    scene.get(BOB, 0, start=0)  # a hit
    scene.sent()
    scene.get(ANN, 3, start=48)
    scene.finish()
    scene.sent()
    scene.get(BOB, 1, start=0)
    scene.get(BOB, 2, start=32)
    assert scene.types() == [(BOB, "BATCH"), (BOB, "BATCH")]
    scene.get(BOB, 3, start=16)
    assert scene.types() == []
    assert (scene.broker.tally.cache_hits, scene.pool.used) == (3, 3 * nbytes(16))


def test_without_a_cache_the_next_batch_takes_the_memory_of_one_that_has_left() -> None:
    """And no more, unless all of them are still on their way."""
    scene = Scene(caching=False)
    for batch in range(4):
        scene.get(ANN, batch, start=16 * batch)
        scene.finish()
        scene.sent()
    assert scene.pool.used == nbytes(16)
    scene.get(ANN, 4, start=0)
    scene.finish()
    (on_its_way,) = scene.broker.replies
    scene.broker.replies.clear()
    scene.get(ANN, 5, start=16)
    scene.finish()
    assert (scene.broker.tally.cache_hits, scene.pool.used) == (0, 2 * nbytes(16))
    scene.broker.sent(on_its_way)
    scene.sent()
    assert scene.is_clean()


def test_a_client_that_takes_slowly_leaves_the_others_their_share(scene: Scene) -> None:
    """Its finished batches hold half of the memory, not all; the other one has its turn for ever."""
    scene = Scene(memory=nbytes(16) * 8)
    for number in range(40):
        scene.get(ANN, number, start=number)
    scene.get(BOB, 1000, start=50)
    slow: list[Reply[Memory]] = []
    for number in range(1001, 1030):
        scene.finish()
        quick = [reply for reply in scene.broker.replies if reply.client == BOB]
        slow += [reply for reply in scene.broker.replies if reply.client == ANN]
        scene.broker.replies.clear()
        assert [reply.message.type for reply in quick] == ["BATCH"]
        for reply in quick:
            scene.broker.sent(reply)
        scene.get(BOB, number, start=50 + number - 1000)
    assert 4 <= len(slow) <= 5
    for reply in slow:
        scene.broker.sent(reply)
    scene.finish()
    assert {reply.client for reply in scene.broker.replies} == {ANN, BOB}


def test_what_is_still_being_sent_keeps_its_memory() -> None:
    """A batch is pinned from the moment it is answered until the service has sent it."""
    scene = Scene(memory=nbytes(16))
    scene.get(ANN, 0)
    scene.finish()
    scene.get(ANN, 1, start=16)
    assert scene.broker.next_part(1) is None
    assert scene.types() == [(ANN, "BATCH")]
    scene.done(scene.part())
    assert scene.types() == [(ANN, "BATCH")]


def test_a_hit_pins_a_batch_too() -> None:
    """Each reply counts."""
    scene = Scene(memory=nbytes(16))
    scene.get(ANN, 0)
    scene.finish()
    scene.sent()
    scene.get(ANN, 0)
    scene.get(BOB, 0)
    scene.get(ANN, 1, start=16)
    assert scene.pool.lent[0].pins == 2
    assert scene.broker.next_part(1) is None
    scene.sent()
    assert scene.part().build.get.batch == 1


def test_a_batch_that_memory_cannot_hold_fails(scene: Scene) -> None:
    """It would wait for ever."""
    scene = Scene(memory=nbytes(16))
    scene.get(ANN, 0, samples=100)
    need, have = nbytes(100), nbytes(16)
    reason = f"a batch of {need:,} bytes exceeds the server's memory of {have:,}"
    assert scene.sent() == [(ANN, Fail(epoch=2, batch=0, attempt=1, retryable=True, reason=reason))]
    assert scene.is_clean()


# Fairness and limits.


def test_clients_take_turns(scene: Scene) -> None:
    """One who asks for much does not keep one waiting who asks for little."""
    for batch in range(6):
        scene.get(EVE, batch, start=16 * batch)
    for batch in range(2):
        scene.get(ANN, batch, start=200 + 16 * batch)
    begun = [scene.part(worker).build for worker in range(8)]
    askers = [next(iter(build.waiters))[0] for build in begun]
    assert askers == [EVE, ANN, EVE, ANN, EVE, EVE, EVE, EVE]
    assert [build.get.batch for build in begun] == [0, 0, 1, 1, 2, 3, 4, 5]


def test_too_many_open_requests_are_refused(scene: Scene) -> None:
    """The limit is each client's own, and an answered request counts no more."""
    for batch in range(limits.OUTSTANDING):
        scene.get(EVE, batch, samples=1, start=batch)
    assert scene.sent() == []
    scene.get(EVE, 999)
    reason = f"more than {limits.OUTSTANDING} requests are open"
    assert scene.sent() == [(EVE, Reject(code="limit", reason=reason))]
    scene.get(ANN, 0)
    scene.cancel(EVE, 0)
    scene.get(EVE, 999)
    assert scene.sent() == []
    assert scene.broker.open == limits.OUTSTANDING + 1


def test_who_has_requests_of_too_many_spans_is_refused(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take memory before there is a slot for them. Whoever has less than his share of that may ask on."""
    monkeypatch.setattr(broker, "SPANS", 8)
    scene.get(ANN, 0, start=300)
    for batch in range(7):
        scene.get(EVE, batch, start=16 * batch)
    assert scene.sent() == []
    scene.get(EVE, 7)
    reason = "8 spans are held, of 8, and your share of them in yours"
    assert scene.sent() == [(EVE, Reject(code="limit", reason=reason))]
    scene.get(ANN, 1, start=316)
    assert scene.sent() == []
    for batch in range(5):
        scene.cancel(EVE, batch)
    scene.get(EVE, 7, start=200)
    assert scene.sent() == []


def test_wrong_streams_and_fingerprints_are_refused(scene: Scene) -> None:
    """Better nothing than other data under the same name."""
    payload = spans.pack(np.array([[0, 0, 1]], np.uint32))
    get = Get(stream="test", fingerprint="train-print", seed=0, epoch=0, batch=0, spans=1)
    scene.say(ANN, get, payload)
    scene.say(ANN, Get(stream="train", fingerprint="old", seed=0, epoch=0, batch=0, spans=1), payload)
    (_, first), (_, second) = scene.sent()
    assert first == Reject(code="stream", reason="there is no stream 'test' here")
    assert isinstance(second, Reject)
    assert second.code == "fingerprint"
    assert second.reason.startswith("stream 'train' has fingerprint train-print here, not old")
    assert scene.broker.open == 0


@pytest.mark.parametrize("span", [(2, 0, 1), (0, 0, 101), (0, 5, 5), (0, 6, 5)])
def test_spans_that_are_not_there_are_protocol_errors(scene: Scene, span: tuple[int, int, int]) -> None:
    """Nothing is asked of a worker that is not in the catalog."""
    get = Get(stream="train", fingerprint="train-print", seed=0, epoch=0, batch=0, spans=1)
    with pytest.raises(ProtocolError, match=r"^spans: "):
        scene.say(ANN, get, spans.pack(np.array([span], np.uint32)))
    assert scene.broker.open == 0


# Leaving.


def test_a_queued_batch_can_be_cancelled(scene: Scene) -> None:
    """It is never begun."""
    scene.get(ANN, 0)
    scene.cancel(ANN, 0)
    scene.cancel(ANN, 0)
    scene.cancel(BOB, 5)
    assert scene.broker.next_part(1) is None
    assert scene.sent() == []
    assert scene.is_clean()


def test_a_batch_in_the_making_can_be_cancelled(scene: Scene) -> None:
    """No more parts are handed out, and its memory is free when the last worker is through."""
    scene.get(ANN, 0, samples=48)
    first, second = scene.part(1), scene.part(2)
    scene.cancel(ANN, 0)
    assert scene.broker.next_part(3) is None
    scene.done(first, 1)
    assert len(scene.pool.lent) == 1
    scene.done(second, 2)
    assert scene.pool.lent == []
    assert scene.sent() == []
    assert scene.is_clean()


def test_cancelling_leaves_others_what_they_asked_for(scene: Scene) -> None:
    """A queued batch passes to another who wants it, one in the making goes on."""
    scene.get(ANN, 0)
    scene.get(BOB, 0)
    scene.cancel(ANN, 0)
    work = scene.part()
    scene.get(EVE, 0)
    scene.cancel(BOB, 0)
    scene.done(work)
    assert scene.types() == [(EVE, "BATCH")]
    assert scene.is_clean()


def test_cancelling_what_has_come_does_nothing(scene: Scene) -> None:
    """The batch stays in the cache."""
    scene.get(ANN, 0)
    scene.finish()
    scene.cancel(ANN, 0)
    assert scene.types() == [(ANN, "BATCH")]
    scene.get(ANN, 0)
    assert scene.broker.tally.cache_hits == 1


def test_one_client_may_want_one_batch_under_two_numbers(scene: Scene) -> None:
    """To cancel one leaves the other."""
    scene.get(ANN, 0)
    scene.get(ANN, 1)
    scene.cancel(ANN, 0)
    scene.finish()
    ((_, batch),) = scene.sent()
    assert isinstance(batch, Batch)
    assert batch.batch == 1


def test_a_client_that_says_goodbye_leaves_nothing(scene: Scene) -> None:
    """Queued batches go at once, the one in the making with its worker."""
    scene.get(ANN, 0)
    scene.get(ANN, 1, start=50)
    work = scene.part()
    scene.say(ANN, Bye())
    scene.say(ANN, Bye())
    assert (scene.broker.clients, scene.broker.queued, scene.broker.open) == (0, 0, 0)
    scene.done(work)
    assert scene.sent() == []
    assert scene.pool.lent == []


def test_a_silent_client_is_forgotten_and_told(scene: Scene) -> None:
    """Should it be there after all, it knows what to ask for again; whoever pings in time stays."""
    scene.get(ANN, 0, attempt=3)
    scene.get(ANN, 1, start=50)
    scene.get(BOB, 0, start=100)
    scene.now = 6.0
    scene.say(BOB, Ping())
    scene.sent()
    scene.broker.tick(CLIENT_SILENCE - 0.1)
    assert scene.sent() == []
    scene.broker.tick(CLIENT_SILENCE)
    reason = "nothing was heard of the client for 10 s"
    assert scene.sent() == [
        (ANN, Fail(epoch=2, batch=0, attempt=3, retryable=True, reason=reason)),
        (ANN, Fail(epoch=2, batch=1, attempt=1, retryable=True, reason=reason)),
    ]
    assert scene.broker.clients == 1
    scene.finish()
    assert scene.types() == [(BOB, "BATCH")]


def test_silent_clients_that_want_the_same_are_all_told(scene: Scene) -> None:
    """A build that passes from one to the next ends with the last."""
    scene.get(ANN, 0)
    scene.get(BOB, 0)
    scene.broker.tick(CLIENT_SILENCE)
    assert scene.types() == [(ANN, "FAIL"), (BOB, "FAIL")]
    assert scene.broker.next_part(1) is None
    assert scene.is_clean()


def test_a_name_may_be_wanted_again_while_its_abandoned_build_ends(scene: Scene) -> None:
    """The new build is another; the end of the old one does not harm it."""
    scene.get(ANN, 0, samples=32)
    old = scene.part(1)
    scene.cancel(ANN, 0)
    scene.get(ANN, 0, samples=32)
    new = [scene.part(2), scene.part(2)]
    assert new[0].build is not old.build
    assert new[0].build.slot is not old.build.slot
    scene.done(new[0], 2)
    scene.done(old, 1)
    scene.done(new[1], 2)
    assert scene.types() == [(ANN, "BATCH")]
    assert len(scene.pool.lent) == 1
    scene.get(BOB, 0, samples=32)
    assert scene.types() == [(BOB, "BATCH")]


def test_a_draining_server_finishes_what_was_asked_and_takes_no_more(scene: Scene) -> None:
    """Everybody is told, those who come later too."""
    scene.get(ANN, 0)
    scene.say(BOB, Ping())
    scene.sent()
    scene.broker.drain()
    scene.get(BOB, 1)
    scene.say(EVE, Hello())
    assert scene.broker.draining
    reason = "the server is shutting down"
    assert scene.sent()[:4] == [
        (ANN, Drain()),
        (BOB, Drain()),
        (BOB, Drain()),  # the first did not arrive, or not in time
        (BOB, Fail(epoch=2, batch=1, attempt=1, retryable=True, reason=reason)),
    ]
    scene.say(EVE, Hello())
    assert scene.types() == [(EVE, "WELCOME"), (EVE, "DRAIN")]
    scene.finish()
    assert scene.types() == [(ANN, "BATCH")]
    assert scene.broker.open == 0


# Bad samples.


def test_a_bad_sample_fails_its_batch_at_once(scene: Scene) -> None:
    """Under on_error="raise" the rest is not built, and the memory is free when the workers are through."""
    scene.get(ANN, 0, samples=64, attempt=4)
    scene.get(BOB, 6, samples=64)
    first, second = scene.part(1), scene.part(2)
    scene.done(first, 1, bad=[3, 5])
    fail = Fail(epoch=2, batch=0, attempt=4, retryable=False, reason="broken", shard="b.tar", key="1:3")
    assert scene.sent() == [
        (ANN, fail),
        (BOB, Fail(epoch=2, batch=6, attempt=1, retryable=False, reason="broken", shard="b.tar", key="1:3")),
    ]
    assert scene.broker.next_part(1) is None
    assert len(scene.pool.lent) == 1
    scene.done(second, 2, bad=[20])
    assert scene.sent() == []
    assert scene.pool.lent == []
    assert scene.is_clean()


def test_a_failed_batch_may_be_asked_for_again(scene: Scene) -> None:
    """Failure is not cached: the data may have been mended."""
    scene.get(ANN, 0)
    scene.done(scene.part(), bad=[0])
    scene.get(ANN, 0)
    scene.done(scene.part())
    assert scene.types() == [(ANN, "FAIL"), (ANN, "BATCH")]


def test_what_is_queued_takes_no_memory_for_its_samples(scene: Scene) -> None:
    """A request names ten thousands of samples in 12 bytes; only what is being built is spelled out."""
    scene.get(ANN, 0, samples=400)
    scene.get(ANN, 1, samples=399)
    begun = scene.part().build
    (queued,) = scene.broker._clients[ANN].queue
    assert (begun.samples.shape, queued.rows) == ((400, 2), 399)
    assert not hasattr(queued, "samples")


def test_clients_share_the_bytes_of_the_counts(scene: Scene) -> None:
    """Many clients that come at once are sent the same memory."""
    for client in (ANN, BOB):
        scene.say(client, Hello(stream="train"))
    first, second = scene.broker.replies
    assert first.trailer is second.trailer
    assert first.trailer == COUNTS.astype("<u4").tobytes()


def test_bad_samples_are_left_out_when_that_is_wanted(scene: Scene) -> None:
    """The batch is compacted; what is missing is told in the order of the batch, whoever reported it first."""
    scene.get(ANN, 0, samples=40, on_error="skip")
    first, second, third = scene.part(1), scene.part(2), scene.part(3)
    scene.done(third, 3, bad=[39])
    scene.done(first, 1, bad=[0, 2])
    scene.done(second, 2)
    reply = scene.broker.replies[0]
    keys = [name(1, index) for index in range(40) if index not in {0, 2, 39}]
    assert isinstance(reply.message, Batch)
    assert reply.message.tensors == (TensorSpec("float32", (37, 4)), TensorSpec("int64", (37,)))
    assert reply.message.missing == 3
    assert reply.message.skipped == tuple(Skipped("b.tar", name(1, i), "broken") for i in (0, 2, 39))
    assert reply.trailer.decode().split("\0") == keys
    scene.sent()
    scene.get(BOB, 0, samples=40, on_error="skip")
    ((_, again),) = scene.sent()
    assert isinstance(again, Batch)
    assert again.skipped == reply.message.skipped
    assert scene.broker.tally.samples == 2 * 37


def test_of_many_bad_samples_some_are_described_and_all_are_counted(scene: Scene) -> None:
    """A header holds 16 reports, and a batch may have no row left."""
    scene.get(ANN, 0, samples=20, on_error="skip")
    scene.done(scene.part(), bad=range(16))
    scene.done(scene.part(), bad=range(16, 20))
    reply = scene.broker.replies.popleft()
    assert isinstance(reply.message, Batch)
    assert (reply.message.missing, len(reply.message.skipped), reply.message.keys) == (20, limits.SKIPPED, 0)
    assert reply.message.tensors[0].shape == (0, 4)
    assert (reply.trailer, reply.message.payload_bytes) == (b"", 0)
    assert reply.slot is not None
    assert reply.slot.rows == []


def test_reports_of_bad_samples_are_cut_to_size() -> None:
    """Names and reasons may be of any length; the header may not."""
    long = Stream(0, "train", FIELDS, 32, ("a" * 999, "b" * 999), COUNTS, "catalog", "train-print")
    scene = Scene(streams=[long])
    scene.get(ANN, 0, on_error="skip")
    scene.get(ANN, 1, on_error="raise")
    for worker in (1, 2):
        work = scene.part(worker)
        scene.broker.done(worker, [""] * work.rows, [Bad(0, 1, "k" * 999, "r" * 9999)])
    batch, fail = (reply.message for reply in scene.broker.replies)
    assert isinstance(batch, Batch)
    assert isinstance(fail, Fail)
    skipped = batch.skipped[0]
    assert (len(skipped.shard), len(skipped.key), len(skipped.reason)) == (199, 199, 95)
    assert (len(fail.shard), len(fail.key), len(fail.reason)) == (199, 199, 1023)


# Workers that die.


@pytest.mark.parametrize(
    ("row", "again"),
    [
        (21, [(21, 1, 1), (22, 10, 0), (16, 5, 0)]),
        (16, [(16, 1, 1), (17, 15, 0)]),
        (31, [(31, 1, 1), (16, 15, 0)]),
        (-1, [(16, 16, 0)]),
        (32, [(16, 16, 0)]),
    ],
    ids=["middle", "first", "last", "none", "other"],
)
def test_what_a_dead_worker_had_in_hand_is_done_again(
    scene: Scene, row: int, again: list[tuple[int, int, int]]
) -> None:
    """The row that it died of alone, and first, if it died of one; the others, and the next part, as they were."""
    scene.get(ANN, 0, samples=64)
    first = scene.part(2)
    assert scene.part(1).first == 16
    scene.part(1)
    scene.broker.lost(1, "died", row, "")
    scene.done(first, 2)
    assert scene.broker.assigned(1) == 0
    parts = []
    while work := scene.broker.next_part(3):
        parts.append((work.first, work.rows, work.kills))
        scene.done(work, 3)
    assert parts == [*again, (32, 16, 0), (48, 16, 0)]
    assert scene.types() == [(ANN, "BATCH")]
    assert scene.is_clean()


def test_nothing_waits_behind_what_cost_a_worker(scene: Scene) -> None:
    """A sample that hangs twice would hold up twice what was given to the same worker."""
    scene.get(ANN, 0, samples=32)
    scene.part(1)
    assert not scene.broker.is_tried(1)
    scene.broker.lost(1, "hung", 3, "1:3")
    single = scene.part(2)
    assert (single.rows, scene.broker.is_tried(2), scene.broker.is_tried(3)) == (1, True, False)
    scene.done(single, 2)
    assert not scene.broker.is_tried(2)


def test_what_an_interrupted_worker_had_in_hand_is_done_again_as_it_was(scene: Scene) -> None:
    """In the old order, however often; nothing is blamed, and nothing is taken for progress."""
    scene.get(ANN, 0, samples=40)
    for worker in range(5):
        first, second = scene.part(worker), scene.part(worker)
        assert [(work.first, work.rows, work.kills) for work in (first, second)] == [(0, 16, 0), (16, 16, 0)]
        scene.broker.interrupted(worker)
        assert scene.broker.assigned(worker) == 0
    assert scene.broker.tally.parts == 0
    scene.finish()
    assert scene.types() == [(ANN, "BATCH")]
    assert scene.is_clean()


def test_skipped_samples_are_counted_by_reason_and_the_last_ones_told(scene: Scene) -> None:
    """A shard that cannot be read is told once, and counts for all its samples; a failure is not skipped."""
    scene.get(ANN, 0, samples=16, on_error="skip")
    work = scene.part()
    shard = [Bad(row, 1, "", "no such file") for row in range(3)]
    scene.broker.done(1, ["key"] * 16, [*shard, Bad(9, 1, "1:9", "broken")])
    scene.get(ANN, 1, start=16, samples=1, on_error="skip")
    for worker in (2, 3):
        scene.part(worker)
        scene.broker.lost(worker, "hung", 0, "1:16")
    scene.get(ANN, 2, start=32, samples=1)
    scene.done(scene.part(), bad=[0])
    tally = scene.broker.tally
    assert dict(tally.skipped) == {"shard": 3, "sample": 1, "worker": 1}
    assert (tally.failed, tally.made) == (1, 17)
    assert list(tally.recent.values()) == [
        BadSample("train", "b.tar", "", "no such file", skipped=3),
        BadSample("train", "b.tar", "1:9", "broken", skipped=1),
        BadSample("train", "b.tar", "1:16", "hung", skipped=1),
        BadSample("train", "b.tar", "1:32", "broken", failed=1),
    ]
    assert scene.broker.newest is not work.build


def test_what_can_be_seen_of_a_broker(scene: Scene) -> None:
    """What clients are owed, what workers are at, which batch is the newest, and how many bytes were sent."""
    scene.get(ANN, 0, samples=16)
    scene.get(ANN, 1, start=16, samples=16)
    scene.say(BOB, Ping())
    assert scene.broker.demand() == [(ANN, 2, 0), (BOB, 0, 0)]
    assert scene.broker.at(1) is None
    assert scene.broker.newest is None
    first, second = scene.part(), scene.part()
    assert scene.broker.at(1) is first
    scene.done(first)
    assert scene.broker.at(1) is second
    assert scene.broker.newest is first.build
    size = scene.broker.replies[-1].message.payload_bytes
    assert sorted(scene.broker.demand()) == [(ANN, 1, size), (BOB, 0, 0)]
    assert scene.broker.tally.payload == size


def test_the_loss_of_a_worker_at_work_is_progress(scene: Scene) -> None:
    """The second loss to a sample settles what becomes of it: a client should not give up just before."""
    scene.broker.lost(1, "died", -1, "")
    assert scene.broker.tally.parts == 0
    scene.get(ANN, 0, samples=1)
    for losses in (1, 2):
        scene.part(losses)
        scene.broker.lost(losses, "hung", 0, "1:0")
        assert scene.broker.tally.parts == losses
    assert scene.types() == [(ANN, "FAIL")]


def test_a_worker_that_dies_before_it_knows_the_key_blames_the_shard(scene: Scene) -> None:
    """It was opening that."""
    scene.get(ANN, 0, samples=1, shard=0)
    for worker in (1, 2):
        scene.part(worker)
        scene.broker.lost(worker, "hung", 0, "")
    ((_, fail),) = scene.sent()
    assert isinstance(fail, Fail)
    assert (fail.shard, fail.key, fail.reason, fail.retryable) == ("a.tar", "", "hung", False)


def test_a_worker_may_die_with_nothing_in_hand(scene: Scene) -> None:
    """Nothing is done again."""
    scene.broker.lost(1, "died", -1, "")
    scene.get(ANN, 0)
    scene.finish()
    scene.broker.lost(0, "died", -1, "")
    assert scene.types() == [(ANN, "BATCH")]


def test_what_a_worker_had_not_begun_has_not_killed_it(scene: Scene) -> None:
    """When all are killed at once, the parts of the first are given to the others before their end is known."""
    scene.get(ANN, 0, samples=2)
    scene.part(1)
    scene.broker.lost(1, "died", 0, "1:0")
    for worker in (2, 3, 4):
        single = scene.broker.next_part(worker)
        assert single is not None
        scene.broker.lost(worker, "died", -1, "")
        assert (single.rows, single.kills, single.build.running) == (1, 1, 0)
    scene.finish()
    assert scene.types() == [(ANN, "BATCH")]
    assert scene.is_clean()


def _kill_over(scene: Scene, row: int) -> None:
    """Do everything with workers that die of one row."""
    for worker in count():
        work = scene.broker.next_part(worker)
        if work is None:
            return
        if work.first <= row < work.first + work.rows:
            scene.broker.lost(worker, "the worker died, twice", row, name(1, row))
        else:
            slot = work.build.slot
            assert slot is not None
            slot.rows = slot.rows or [None] * work.build.rows
            scene.done(work, worker)


def test_a_sample_that_kills_two_workers_is_bad(scene: Scene) -> None:
    """It alone: those that were in the same part are done."""
    scene.get(ANN, 0, samples=32, on_error="skip")
    _kill_over(scene, 5)
    reply = scene.broker.replies[0]
    assert isinstance(reply.message, Batch)
    assert reply.message.skipped == (Skipped("b.tar", "1:5", "the worker died, twice"),)
    assert reply.message.missing == 1
    scene.sent()
    scene.get(ANN, 1, samples=32)
    _kill_over(scene, 20)
    reason = "the worker died, twice"
    assert scene.sent() == [
        (ANN, Fail(epoch=2, batch=1, attempt=1, retryable=False, reason=reason, shard="b.tar", key="1:20"))
    ]
    assert scene.is_clean()


def test_a_sample_at_which_workers_are_killed_from_outside_has_more_tries(scene: Scene) -> None:
    """Four by default; one death of its own accord counts for two of them."""
    scene.get(ANN, 0, samples=32, on_error="skip")
    scene.part(1)
    for tries in range(3):
        scene.broker.lost(1, "killed", 0, "1:0", 0.5)
        work = scene.broker.next_part(1)
        assert work is not None
        assert (work.first, work.rows, work.kills) == (0, 1, 0.5 * (tries + 1))
    scene.broker.lost(1, "died", 0, "1:0")
    assert not scene.broker.replies
    scene.finish()
    ((_, batch),) = scene.sent()
    assert isinstance(batch, Batch)
    assert batch.skipped == (Skipped("b.tar", "1:0", "died"),)


def test_a_worker_that_dies_over_an_abandoned_batch_frees_it(scene: Scene) -> None:
    """Nobody wants the parts that it had; nothing is handed out again."""
    scene.get(ANN, 0, samples=48)
    for worker in (1, 1, 2):
        scene.part(worker)
    scene.cancel(ANN, 0)
    scene.broker.lost(1, "died", -1, "")
    assert len(scene.pool.lent) == 1
    scene.broker.lost(2, "died", -1, "")
    assert scene.pool.lent == []
    assert scene.broker.next_part(3) is None
    assert scene.is_clean()


def test_a_killer_ends_its_batch_while_the_dead_worker_had_more_of_it(scene: Scene) -> None:
    """The memory is given back once."""
    scene.get(ANN, 0, samples=16)
    scene.part(1)
    scene.broker.lost(1, "died", 0, "1:0")
    scene.part(1)
    scene.part(1)
    scene.broker.lost(1, "died again", 0, "1:0")
    assert scene.types() == [(ANN, "FAIL")]
    assert scene.pool.lent == []
    assert scene.is_clean()


# Anything, in any order.

SPANS = [(shard, start, samples) for shard in (0, 1) for start in (0, 40) for samples in (5, 16, 40)]
CLIENTS = (ANN, BOB, EVE)
WORKERS = (1, 2, 3)
BATCHES = 4


def _is_bad(sample: Sample) -> bool:
    return sample == (1, 44)


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens, all that was asked for is answered once, with the right samples, and nothing stays behind."""

    def __init__(self) -> None:
        super().__init__()
        self.scene = Scene(memory=2 * nbytes(40) + nbytes(16))
        self.broker = self.scene.broker
        self.owed: dict[tuple[bytes, int], tuple[int, list[Sample], str]] = {}
        self.unsent: list[tuple[Reply[Memory], Memory, list[Sample | None]]] = []
        self.in_hand: dict[int, list[Work[Memory]]] = {worker: [] for worker in WORKERS}
        self.kills: Counter[Sample] = Counter()
        self.attempts = count(1)

    @rule(
        client=st.sampled_from(CLIENTS),
        batch=st.integers(0, BATCHES),
        span=st.sampled_from(SPANS),
        on_error=st.sampled_from(["raise", "skip"]),
    )
    def get(self, client: bytes, batch: int, span: tuple[int, int, int], on_error: str) -> None:
        shard, start, samples = span
        attempt = next(self.attempts)
        self.owed[client, batch] = attempt, [(shard, start + i) for i in range(samples)], on_error
        self.scene.get(client, batch, shard=shard, start=start, samples=samples, on_error=on_error, attempt=attempt)
        self.collect()

    @rule(client=st.sampled_from(CLIENTS), batch=st.integers(0, BATCHES))
    def cancel(self, client: bytes, batch: int) -> None:
        self.scene.cancel(client, batch)
        self.owed.pop((client, batch), None)

    @rule(client=st.sampled_from(CLIENTS))
    def bye(self, client: bytes) -> None:
        self.scene.say(client, Bye())
        self.owed = {key: owed for key, owed in self.owed.items() if key[0] != client}

    @rule(client=st.sampled_from(CLIENTS), seconds=st.sampled_from([1.0, 6.0]))
    def ping(self, client: bytes, seconds: float) -> None:
        """Time passes, and one client is heard: others may fall silent."""
        self.scene.now += seconds
        self.scene.say(client, Ping())
        self.broker.tick(self.scene.now)
        self.collect()

    @rule(worker=st.sampled_from(WORKERS))
    def begin(self, worker: int) -> None:
        if len(self.in_hand[worker]) < 2 and (work := self.broker.next_part(worker)):
            slot = work.build.slot
            assert slot is not None
            assert slot.pins == 0
            slot.rows = slot.rows if len(slot.rows) == work.build.rows else [None] * work.build.rows
            slot.rows[work.first : work.first + work.rows] = [None] * work.rows
            self.in_hand[worker].append(work)

    @rule(worker=st.sampled_from(WORKERS))
    def done(self, worker: int) -> None:
        if self.in_hand[worker]:
            work = self.in_hand[worker].pop(0)
            bad = [work.first + i for i, (s, n) in enumerate(work.samples.tolist()) if _is_bad((s, n))]
            self.scene.done(work, worker, bad=bad)
            self.collect()

    @rule(worker=st.sampled_from(WORKERS), at=st.integers(-1, 40))
    def lost(self, worker: int, at: int) -> None:
        row = -1
        if self.in_hand[worker]:
            work = self.in_hand[worker][0]
            if 0 <= at < work.rows:
                shard, index = work.samples[at].tolist()
                self.kills[shard, index] += 1
            row = work.first + at if at >= 0 else -1
            self.in_hand[worker].clear()
        self.broker.lost(worker, "died", row, "")
        self.collect()

    @rule(worker=st.sampled_from(WORKERS))
    def interrupted(self, worker: int) -> None:
        """End a worker with its fork server: nobody is to blame."""
        self.in_hand[worker].clear()
        self.broker.interrupted(worker)
        self.collect()

    @precondition(lambda self: self.unsent)
    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        """Send one reply to its end: what is sent is still what the batch was."""
        reply, slot, rows = self.unsent.pop(data.draw(st.integers(0, len(self.unsent) - 1)))
        assert slot.rows == rows
        self.broker.sent(reply)

    @rule()
    def settle(self) -> None:
        """Once the workers have done all there is and the replies have left, nobody waits."""
        for worker in WORKERS:
            while self.in_hand[worker]:
                self.done(worker)
        while True:
            while self.unsent:
                reply, slot, rows = self.unsent.pop()
                assert slot.rows == rows
                self.broker.sent(reply)
            self.begin(1)
            if not self.in_hand[1]:
                break
            self.done(1)
        assert self.owed == {}
        assert self.broker.open == 0
        assert self.scene.is_clean()

    def collect(self) -> None:
        while self.broker.replies:
            reply = self.broker.replies.popleft()
            message = reply.message
            if isinstance(message, Pong):
                continue
            assert isinstance(message, (Batch, Fail))
            attempt, samples, on_error = self.owed.pop((reply.client, message.batch))
            assert message.attempt == attempt
            if isinstance(message, Batch):
                assert reply.slot is not None
                rows = [sample for sample in samples if sample in reply.slot.rows]
                assert reply.slot.rows == rows
                assert reply.trailer.decode() == "\0".join(name(*row) for row in rows)
                assert message.missing == len(samples) - len(rows)
                missing = set(samples) - set(rows)
                assert on_error == "skip" or not missing
                assert all(_is_bad(sample) or self.kills[sample] >= 2 for sample in missing)
                assert not any(_is_bad(row) for row in rows)
                self.unsent.append((reply, reply.slot, list(rows)))
            elif not message.retryable:
                assert on_error == "raise"
                assert any(_is_bad(sample) or self.kills[sample] >= 2 for sample in samples)

    @invariant()
    def memory_is_bounded(self) -> None:
        assert self.scene.pool.used <= self.scene.pool.max_bytes

    @invariant()
    def spans_are_counted(self) -> None:
        assert self.broker._spans == sum(len(build.spans) for build in self.broker._builds.values())

    @invariant()
    def what_is_open_is_what_is_owed(self) -> None:
        assert self.broker.open == len(self.owed)

    def teardown(self) -> None:
        """All clients leave; when the workers are through, only the cache has memory."""
        for client in CLIENTS:
            self.bye(client)
        assert (self.broker.clients, self.broker.open, self.broker.queued) == (0, 0, 0)
        self.settle()


AnyOrder.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestAnyOrder = AnyOrder.TestCase
