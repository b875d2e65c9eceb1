"""The ledger, in conversations: what servers say and when, and what the ledger asks, accepts and raises."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from math import inf
from random import Random

import pytest

from feedmill_protocol import limits
from feedmill_protocol.errors import (
    DataError,
    ProtocolError,
    SampleError,
    ServerUnavailable,
    ShardError,
    StreamMismatch,
)
from feedmill_protocol.ledger import (
    ANSWERS,
    ANSWERS_LEAST,
    ATTEMPTS,
    BACKOFF,
    DAMAGES,
    HEDGES,
    LATE,
    LATE_SECONDS,
    PATIENCE,
    PING_EVERY,
    SILENCE,
    Ledger,
    Outgoing,
    State,
)
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
from feedmill_protocol.tensors import FieldSpec, TensorSpec

SAMPLES = 4
IMAGE = FieldSpec("image", "uint8", (3, 8, 8))
LABEL = FieldSpec("label", "int64", ())
TIMEOUT = 30.0


# What servers say.


def welcome(server: str = "a", *, workers: int = 1, counts: bool = True) -> Welcome:
    return Welcome(
        server=server,
        boot=f"{server}-1",
        stream="train",
        fields=(IMAGE, LABEL),
        batch_size=SAMPLES,
        catalog="c0ffee",
        fingerprint="f00d",
        shards=10,
        workers=workers,
        counts=counts,
    )


def batch_for(get: Get, missing: int = 0) -> Batch:
    n = SAMPLES - missing
    return Batch(
        epoch=get.epoch,
        batch=get.batch,
        attempt=get.attempt,
        tensors=(IMAGE.rows(n), LABEL.rows(n)),
        keys=0,
        missing=missing,
    )


def fail_for(get: Get, *, retryable: bool = True, shard: str = "", key: str = "") -> Fail:
    return Fail(
        epoch=get.epoch,
        batch=get.batch,
        attempt=get.attempt,
        retryable=retryable,
        reason="no memory",
        shard=shard,
        key=key,
    )


# What the client does.


def get(number: int, *, on_error: str = "raise") -> Get:
    return Get(stream="train", fingerprint="f00d", seed=1, epoch=0, batch=number, spans=1, on_error=on_error)


def want(ledger: Ledger, *numbers: int, now: float = 0.0, on_error: str = "raise") -> None:
    for number in numbers:
        ledger.want(get(number, on_error=on_error), b"spans %d" % number, SAMPLES, now)


def sent(ledger: Ledger, server: str | None = None) -> list[Message]:
    """Empty the outbox; return the messages for a server, or for all."""
    out = list(ledger.outbox)
    ledger.outbox.clear()
    return [o.message for o in out if server in (None, o.server)]


def gets(ledger: Ledger) -> dict[str, list[Get]]:
    """Empty the outbox; return what was asked of whom."""
    asked: dict[str, list[Get]] = {}
    for out in ledger.outbox:
        if isinstance(out.message, Get):
            asked.setdefault(out.server, []).append(out.message)
    ledger.outbox.clear()
    return asked


def only_get(ledger: Ledger, server: str) -> Get:
    """Empty the outbox; return the one batch that was asked for, of this server."""
    asked = gets(ledger)
    assert list(asked) == [server]
    (found,) = asked[server]
    return found


def ready(*servers: str, timeout: float = TIMEOUT, jitter: Callable[[], float] | None = None, **workers: int) -> Ledger:
    """Return a ledger at time 0 to which these servers are welcome, with an empty outbox."""
    ledger = Ledger("train", timeout=timeout, now=0.0, jitter=jitter)
    for server in servers:
        ledger.add(server)
        ledger.connected(server, 0.0)
        ledger.received(server, welcome(server, workers=workers.get(server, 1)), 0.0)
    ledger.outbox.clear()
    return ledger


def chatter(ledger: Ledger, *servers: str, until: float, start: float = 0.0) -> None:
    """Let time pass in which these servers, and no others, answer pings, but get nowhere."""
    now = start
    while now < until:
        now = min(now + PING_EVERY, until)
        for server in servers:
            ledger.received(server, Pong(progress=0, queue=0), now)
        ledger.tick(now)


# Greeting.


def test_a_server_is_greeted_when_its_connection_stands() -> None:
    """Not before: what is sent without a connection is lost."""
    ledger = Ledger("train", timeout=TIMEOUT, now=0.0)
    ledger.add("a")
    assert not ledger.outbox
    assert ledger.describe() == {"a": "no connection"}
    ledger.connected("a", 1.0)
    assert list(ledger.outbox) == [Outgoing("a", Hello(stream="train", catalog=""), b"")]
    assert ledger.describe() == {"a": "connected, but no answer yet"}


def test_the_first_welcome_is_the_contract_and_its_counts_are_wanted() -> None:
    """The catalog is received once, whoever sends it first, and not asked for again."""
    ledger = Ledger("train", timeout=TIMEOUT, now=0.0)
    for server in ("a", "b"):
        ledger.add(server)
        ledger.connected(server, 0.0)
    assert ledger.received("b", welcome("b"), 0.1)
    assert ledger.contract == welcome("b")
    assert not ledger.received("a", welcome("a"), 0.1)
    assert not ledger.received("b", welcome("b"), 0.2)
    sent(ledger)
    ledger.add("c")
    ledger.connected("c", 0.3)
    assert sent(ledger) == [Hello(stream="train", catalog="c0ffee")]
    assert not ledger.received("c", welcome("c", counts=False), 0.4)
    assert ledger.describe() == dict.fromkeys("abc", "ready")


def test_one_welcome_said_by_two_is_read_once() -> None:
    """Within a process two servers may hand over the very same object."""
    ledger = Ledger("train", timeout=TIMEOUT, now=0.0)
    same = welcome()
    for server in ("a", "b"):
        ledger.add(server)
        ledger.connected(server, 0.0)
    assert [ledger.received(server, same, 0.0) for server in ("a", "b")] == [True, False]


def test_a_server_that_does_not_answer_is_greeted_again() -> None:
    """A broker that was still starting may have lost the first HELLO."""
    ledger = Ledger("train", timeout=TIMEOUT, now=0.0)
    ledger.add("a")
    ledger.connected("a", 0.0)
    sent(ledger)
    ledger.tick(PING_EVERY / 2)
    assert not ledger.outbox
    ledger.tick(PING_EVERY)
    assert sent(ledger) == [Hello(stream="train")]


def test_adding_a_known_server_changes_nothing() -> None:
    """A name is looked up again and again and mostly resolves to what is known."""
    ledger = ready("a")
    want(ledger, 0)
    sent(ledger)
    ledger.add("a")
    assert ledger.describe() == {"a": "ready"}
    assert not ledger.outbox


# Asking.


def test_what_is_wanted_is_asked_at_once_with_its_spans() -> None:
    """The request goes out as it was given, with an attempt of its own."""
    ledger = ready("a")
    want(ledger, 7)
    assert list(ledger.outbox) == [Outgoing("a", replace(get(7), attempt=1), b"spans 7")]
    assert ledger.open == 1


def test_what_came_is_taken_and_nothing_more_is_said() -> None:
    """The server that answered has nothing left to cancel."""
    ledger = ready("a")
    want(ledger, 7)
    asked = only_get(ledger, "a")
    assert ledger.received("a", batch_for(asked), 0.1)
    assert not ledger.outbox
    assert (ledger.open, ledger.duplicates, ledger.asked_again) == (0, 0, 0)


def test_what_is_wanted_early_is_asked_when_a_server_is_ready() -> None:
    """Oldest first."""
    ledger = Ledger("train", timeout=TIMEOUT, now=0.0)
    want(ledger, 2, 0, 1)
    ledger.add("a")
    ledger.connected("a", 0.0)
    assert gets(ledger) == {}
    ledger.received("a", welcome(), 0.1)
    assert [g.batch for g in gets(ledger)["a"]] == [2, 0, 1]


def test_the_least_busy_server_is_asked() -> None:
    """Equal servers take turns."""
    ledger = ready("a", "b")
    want(ledger, *range(6))
    assert {server: len(asked) for server, asked in gets(ledger).items()} == {"a": 3, "b": 3}


def test_idle_servers_take_turns() -> None:
    """Even if only one batch is wanted at a time: every server's share of the cache and the workers is used."""
    ledger = ready("a", "b", "c")
    turns = []
    for number in range(6):
        want(ledger, number)
        ((server, (asked,)),) = gets(ledger).items()
        ledger.received(server, batch_for(asked), 0.1)
        turns.append(server)
    assert turns == ["a", "b", "c"] * 2


def test_a_server_with_more_workers_is_asked_for_more() -> None:
    """In proportion to the workers, at every moment."""
    ledger = ready("a", "b", a=12, b=4)
    for n in range(1, 9):
        want(ledger, *range(4 * (n - 1), 4 * n))
        assert {server: len(asked) for server, asked in gets(ledger).items()} == {"a": 3, "b": 1}


def test_a_finished_batch_makes_room_for_the_next() -> None:
    """Whoever is done first is asked first."""
    ledger = ready("a", "b")
    want(ledger, 0, 1)
    asked = gets(ledger)
    assert ledger.received("b", batch_for(asked["b"][0]), 0.1)
    want(ledger, 2)
    assert only_get(ledger, "b").batch == 2


def test_no_server_is_asked_for_more_than_its_credit() -> None:
    """The rest waits, and goes out one by one as batches come, or are forgotten."""
    ledger = ready("a")
    want(ledger, *range(limits.OUTSTANDING + 3))
    asked = gets(ledger)["a"]
    assert [g.batch for g in asked] == list(range(limits.OUTSTANDING))
    ledger.received("a", batch_for(asked[5]), 0.1)
    assert only_get(ledger, "a").batch == limits.OUTSTANDING
    ledger.forget((0, 6))
    assert only_get(ledger, "a").batch == limits.OUTSTANDING + 1
    ledger.forget((0, limits.OUTSTANDING + 2))
    ledger.received("a", batch_for(asked[7]), 0.2)
    assert gets(ledger) == {}
    assert ledger.open == limits.OUTSTANDING - 1


def test_a_batch_that_is_wanted_again_is_a_new_request() -> None:
    """The old one is cancelled, and its reply, which may be of another seed, is not taken for the new one's."""
    ledger = ready("a")
    want(ledger, 0)
    old = only_get(ledger, "a")
    ledger.want(replace(get(0), seed=2), b"other", SAMPLES, 0.0)
    assert sent(ledger) == [Cancel(epoch=0, batch=0), replace(get(0), seed=2, attempt=2)]
    assert not ledger.received("a", batch_for(old), 0.1)
    assert ledger.received("a", batch_for(replace(old, attempt=2)), 0.2)
    assert (ledger.open, ledger.duplicates) == (0, 1)
    ledger.disconnected("a")


def test_a_reply_to_a_forgotten_request_is_not_taken_for_a_later_one() -> None:
    """Attempts are counted over all requests, so a number never comes back."""
    ledger = ready("a", "b")
    want(ledger, 0)
    old = only_get(ledger, "a")
    ledger.forget((0, 0))
    ledger.received("a", Drain(), 0.0)
    want(ledger, 0)
    new = only_get(ledger, "b")
    assert old.attempt != new.attempt
    assert not ledger.received("a", batch_for(old), 0.1)
    assert not ledger.received("a", batch_for(new), 0.1)  # b was asked this, not a
    assert ledger.received("b", batch_for(new), 0.2)


# Losing servers.


def test_a_lost_servers_batches_are_asked_elsewhere_oldest_first() -> None:
    """Before anything that was never asked."""
    ledger = ready("a", "b")
    want(ledger, 0, 1, 2, 3)
    lost = gets(ledger)["a"]
    ledger.disconnected("a")
    assert [g.batch for g in gets(ledger)["b"]] == [g.batch for g in lost]
    assert ledger.asked_again == 2
    assert ledger.describe() == {"a": "no connection", "b": "ready"}


def test_with_no_server_left_everything_waits_for_one() -> None:
    """A server that comes back is asked for all of it, in order."""
    ledger = ready("a")
    want(ledger, 0, 1)
    sent(ledger)
    ledger.disconnected("a")
    want(ledger, 2)
    assert not ledger.outbox
    ledger.connected("a", 5.0)
    assert sent(ledger) == [Hello(stream="train", catalog="c0ffee")]
    ledger.received("a", welcome(counts=False), 5.1)
    assert [g.batch for g in gets(ledger)["a"]] == [0, 1, 2]


def test_a_connection_that_stands_anew_has_lost_what_was_asked_over_the_old_one() -> None:
    """Though nobody said that the old one was gone; others are asked at once."""
    ledger = ready("a", "b")
    want(ledger, 0)
    only_get(ledger, "a")
    ledger.connected("a", 1.0)
    assert list(ledger.outbox) == [
        Outgoing("a", Hello(stream="train", catalog="c0ffee")),
        Outgoing("b", replace(get(0), attempt=2), b"spans 0"),
    ]


def test_a_silent_server_is_suspect_and_others_are_asked() -> None:
    """After SILENCE, not before; it is still pinged."""
    ledger = ready("a", "b")
    want(ledger, 0)
    only_get(ledger, "a")
    chatter(ledger, "b", until=SILENCE - 0.01)
    assert ledger.describe()["a"] == "ready"
    assert gets(ledger) == {}
    chatter(ledger, "b", start=SILENCE - 0.01, until=SILENCE)
    assert ledger.describe() == {"a": "silent", "b": "ready"}
    assert only_get(ledger, "b").batch == 0
    ledger.received("b", Pong(progress=0, queue=0), SILENCE + PING_EVERY)
    ledger.tick(SILENCE + PING_EVERY)
    assert sent(ledger, "a") == [Ping()]


def test_the_late_reply_of_a_suspect_is_a_duplicate() -> None:
    """The first reply won, the second is dropped and counted, and its server is trusted again."""
    ledger = ready("a", "b")
    want(ledger, 0)
    first = only_get(ledger, "a")
    chatter(ledger, "b", until=SILENCE)
    second = only_get(ledger, "b")
    assert ledger.received("b", batch_for(second), SILENCE)
    assert not ledger.received("a", batch_for(first), SILENCE + 0.1)
    assert ledger.duplicates == 1
    assert ledger.describe()["a"] == "ready"


def test_the_late_reply_of_a_suspect_may_be_the_first() -> None:
    """Then it wins, and the other server is told to stop."""
    ledger = ready("a", "b")
    want(ledger, 7)
    first = only_get(ledger, "a")
    chatter(ledger, "b", until=SILENCE)
    second = only_get(ledger, "b")
    assert ledger.received("a", batch_for(first), SILENCE + 0.1)
    assert list(ledger.outbox) == [Outgoing("b", Cancel(epoch=0, batch=7))]
    assert not ledger.received("b", batch_for(second), SILENCE + 0.2)
    assert (ledger.open, ledger.duplicates, ledger.asked_again) == (0, 1, 1)
    ledger.disconnected("b")


def test_a_suspect_that_speaks_is_asked_at_once_for_what_waits() -> None:
    """Whatever it says, even if nobody wants to hear it any more."""
    ledger = ready("a")
    want(ledger, 0)
    late = only_get(ledger, "a")
    chatter(ledger, until=SILENCE)
    ledger.forget((0, 0))
    want(ledger, 1, now=SILENCE)
    assert gets(ledger) == {}
    assert not ledger.received("a", batch_for(late), SILENCE + 0.1)
    assert only_get(ledger, "a").batch == 1


def test_a_reply_that_was_read_before_the_connection_went_still_counts() -> None:
    """Sockets report a loss and deliver what came before it in either order."""
    ledger = ready("a")
    want(ledger, 0)
    asked = only_get(ledger, "a")
    ledger.disconnected("a")
    assert ledger.received("a", batch_for(asked), 0.1)
    assert ledger.describe() == {"a": "no connection"}


@pytest.mark.parametrize("message", [Drain(), Reject(code="limit", reason="")], ids=["DRAIN", "REJECT"])
def test_last_words_do_not_bring_a_connection_back(message: Message) -> None:
    """What a lost server said before changes nothing, and nothing is sent to it."""
    ledger = ready("a")
    ledger.disconnected("a")
    ledger.received("a", message, 0.1)
    ledger.tick(10.0)
    assert ledger.describe() == {"a": "no connection"}
    assert not ledger.outbox


def test_a_removed_server_is_left_politely_and_its_batches_asked_elsewhere() -> None:
    """BYE lets it drop what it was asked for."""
    ledger = ready("a", "b")
    want(ledger, 0)
    sent(ledger)
    ledger.remove("a")
    assert [(o.server, o.message.type) for o in ledger.outbox] == [("a", "BYE"), ("b", "GET")]
    assert ledger.describe() == {"b": "ready"}


def test_removing_a_server_without_a_connection_says_nothing() -> None:
    """Nor does removing one that is not known."""
    ledger = ready("a")
    ledger.disconnected("a")
    ledger.remove("a")
    ledger.remove("a")
    assert not ledger.outbox
    assert ledger.describe() == {}


# Draining.


def test_a_draining_server_finishes_and_is_asked_no_more() -> None:
    """What it was asked for stays with it; it is no failure of its batches if it hands one back."""
    ledger = ready("a", "b")
    want(ledger, 0, 1)
    asked = gets(ledger)
    ledger.received("a", Drain(), 0.1)
    want(ledger, 2, 3)
    assert [g.batch for g in gets(ledger)["b"]] == [2, 3]
    assert ledger.received("a", batch_for(asked["a"][0]), 0.2)
    assert ledger.describe() == {"a": "shutting down", "b": "ready"}


def test_what_a_draining_server_hands_back_is_no_failure() -> None:
    """However often: ATTEMPTS counts servers that tried."""
    ledger = ready("a")
    want(ledger, 0)
    for number in range(2 * ATTEMPTS):
        asked = only_get(ledger, "a")
        ledger.received("a", Drain(), number)
        ledger.received("a", fail_for(asked), number)
        ledger.disconnected("a")
        ledger.connected("a", number)
        ledger.received("a", welcome(), number)
    assert ledger.open == 1


def test_what_a_draining_server_owes_is_asked_elsewhere_when_it_falls_silent() -> None:
    """One that hangs while it shuts down must not hold the epoch up. If it speaks, it is still shutting down."""
    ledger = ready("a", "b")
    want(ledger, 0)
    only_get(ledger, "a")
    ledger.received("a", Drain(), 0.0)
    chatter(ledger, "b", until=SILENCE)
    assert only_get(ledger, "b").batch == 0
    assert ledger.describe()["a"] == "silent"
    ledger.received("a", Pong(progress=0, queue=0), SILENCE)
    want(ledger, 1, now=SILENCE)
    assert only_get(ledger, "b").batch == 1
    assert ledger.describe()["a"] == "shutting down"


def test_a_draining_server_that_is_full_keeps_draining() -> None:
    """REJECT takes back what it was asked for, and does not make it greetable again."""
    ledger = ready("a")
    want(ledger, 0)
    ledger.received("a", Drain(), 0.0)
    ledger.received("a", Reject(code="limit", reason=""), 0.1)
    sent(ledger)
    ledger.tick(1.0)
    assert sent(ledger) == [Ping()]
    assert ledger.describe() == {"a": "shutting down"}


# Failing.


def test_a_failed_batch_is_asked_of_somebody_else() -> None:
    """Even of a busier server."""
    ledger = ready("a", "b")
    want(ledger, 0, 1, 2)
    asked = gets(ledger)
    ledger.received("b", batch_for(asked["b"][0]), 0.1)
    ledger.received("a", fail_for(asked["a"][0]), 0.1)
    assert only_get(ledger, "b").batch == 0
    want(ledger, 3, 4)
    ledger.received("a", fail_for(asked["a"][1]), 0.1)
    assert {s: [g.batch for g in got] for s, got in gets(ledger).items()} == {"a": [3], "b": [4, 2]}


def test_the_only_server_is_asked_again_though_it_failed() -> None:
    """Better than waiting for another; but after a pause, which doubles."""
    ledger = ready("a", jitter=lambda: 0.5)
    want(ledger, 0)
    first = only_get(ledger, "a")
    ledger.received("a", fail_for(first), 0.1)
    assert not ledger.outbox
    assert ledger.wake_at() == 0.1 + BACKOFF
    ledger.tick(0.1 + BACKOFF)
    again = only_get(ledger, "a")
    assert again == replace(first, attempt=first.attempt + 1)
    ledger.received("a", fail_for(again), 1.0)
    ledger.tick(1.0 + 2 * BACKOFF - 0.01)
    assert not gets(ledger)
    ledger.tick(1.0 + 2 * BACKOFF)
    assert only_get(ledger, "a").batch == 0


def test_pauses_differ_from_client_to_client() -> None:
    """A server that all ranks wait for is not asked by all of them at once."""
    pauses = set()
    for _ in range(20):
        ledger = ready("a")
        want(ledger, 0)
        ledger.received("a", fail_for(only_get(ledger, "a")), 0.1)
        pauses.add(ledger.wake_at() - 0.1)
    assert len(pauses) > 10
    assert BACKOFF / 2 <= min(pauses) <= max(pauses) <= 1.5 * BACKOFF


def test_a_batch_that_fails_everywhere_ends_the_feed() -> None:
    """After ATTEMPTS failures, with the last reason and where it came from."""
    ledger = ready("a", "b")
    want(ledger, 7)
    for number in range(ATTEMPTS):
        ledger.tick(float(number))
        (server, (asked,)) = next(iter(gets(ledger).items()))
        if number < ATTEMPTS - 1:
            ledger.received(server, fail_for(asked), float(number))
            continue
        with pytest.raises(DataError) as caught:
            ledger.received(server, fail_for(asked), float(number))
        assert str(caught.value) == f"batch 7 of epoch 0 failed 3 times, last at {server}: no memory"


@pytest.mark.parametrize(
    ("shard", "key", "error", "sentence"),
    [
        ("a.tar", "0003", SampleError, "shard a.tar, sample 0003: no memory"),
        ("a.tar", "", ShardError, "shard a.tar: no memory"),
        ("", "", DataError, "no memory"),
    ],
)
def test_bad_data_ends_the_feed_at_once(shard: str, key: str, error: type[DataError], sentence: str) -> None:
    """No other server would fare better; the error names what the server named."""
    ledger = ready("a", "b")
    want(ledger, 0)
    asked = only_get(ledger, "a")
    with pytest.raises(DataError) as caught:
        ledger.received("a", fail_for(asked, retryable=False, shard=shard, key=key), 0.1)
    assert type(caught.value) is error
    assert str(caught.value) == sentence


@pytest.mark.parametrize("retryable", [True, False])
def test_a_late_failure_is_dropped(retryable: bool) -> None:  # noqa: FBT001 - pytest passes it by name
    """Of a batch that came meanwhile, that is asked elsewhere, or that was asked again of the same server."""
    ledger = ready("a", "b")
    want(ledger, 0)
    first = only_get(ledger, "a")
    ledger.connected("a", 0.0)
    second = only_get(ledger, "b")
    ledger.received("a", welcome(), 0.0)
    ledger.received("a", fail_for(first, retryable=retryable), SILENCE)
    ledger.disconnected("b")
    third = only_get(ledger, "a")
    ledger.received("a", fail_for(first, retryable=retryable), SILENCE)
    assert ledger.received("a", batch_for(third), SILENCE)
    ledger.received("b", fail_for(second, retryable=retryable), SILENCE)
    assert gets(ledger) == {}


# Forgetting.


def test_a_forgotten_batch_is_cancelled() -> None:
    """Its late reply is a duplicate."""
    ledger = ready("a")
    want(ledger, 7)
    asked = only_get(ledger, "a")
    ledger.forget((0, 7))
    assert sent(ledger) == [Cancel(epoch=0, batch=7)]
    assert ledger.open == 0
    assert not ledger.received("a", batch_for(asked), 0.1)
    assert ledger.duplicates == 1


def test_forgetting_what_nobody_was_asked_for_says_nothing() -> None:
    """Nor does forgetting what was never wanted; neither is asked for later."""
    ledger = Ledger("train", timeout=TIMEOUT, now=0.0)
    want(ledger, 0)
    ledger.forget((0, 0))
    ledger.forget((0, 1))
    ledger.add("a")
    ledger.connected("a", 0.0)
    ledger.received("a", welcome(), 0.0)
    assert sent(ledger) == [Hello(stream="train")]


# Leaving.


def test_leaving_asks_nothing_of_anybody() -> None:
    """Every server that is there hears BYE, once; what comes after that changes nothing."""
    ledger = ready("a", "b", "c")
    want(ledger, *range(limits.OUTSTANDING * 3 + 1))
    ledger.disconnected("c")
    asked = gets(ledger)["a"][0]
    ledger.leave()
    assert list(ledger.outbox) == [Outgoing("a", Bye()), Outgoing("b", Bye())]
    ledger.outbox.clear()
    assert ledger.open == 0
    assert not ledger.received("a", batch_for(asked), 0.1)
    ledger.disconnected("b")
    ledger.remove("a")
    ledger.tick(100.0)
    assert not ledger.outbox


# Skipping.


def test_a_batch_may_lack_what_may_be_skipped() -> None:
    """Even all of it; the tensors are that much shorter."""
    ledger = ready("a")
    want(ledger, 0, 1, on_error="skip")
    first, second = gets(ledger)["a"]
    lost = Skipped("a.tar", "0003", "truncated")
    assert ledger.received("a", replace(batch_for(first, missing=1), skipped=(lost,)), 0.1)
    assert ledger.received("a", batch_for(second, missing=SAMPLES), 0.1)


# Hostile and broken servers.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensors": ()}, r"BATCH has tensors \(\), where"),
        ({"tensors": (IMAGE.rows(SAMPLES),)}, "BATCH has tensors"),
        ({"tensors": (LABEL.rows(SAMPLES), IMAGE.rows(SAMPLES))}, "BATCH has tensors"),
        ({"tensors": (IMAGE.rows(SAMPLES), LABEL.rows(SAMPLES - 1))}, "BATCH has tensors"),
        ({"tensors": (TensorSpec("int8", (SAMPLES, 3, 8, 8)), LABEL.rows(SAMPLES))}, "BATCH has tensors"),
        ({"missing": 1}, "BATCH lacks 1 samples, though none may be skipped"),
        ({"skipped": (Skipped("s", "k", "r"),)}, "BATCH lacks 0 samples, but names 1"),
        ({"attempt": 0}, "BATCH for attempt 0, which was never made"),
        ({"attempt": 2}, "BATCH for attempt 2, which was never made"),
    ],
)
def test_a_batch_that_breaks_the_contract_ends_the_feed(change: dict[str, object], message: str) -> None:
    """Wrong tensors, missing samples, and attempts that nobody made are named with the server."""
    ledger = ready("a")
    want(ledger, 0)
    asked = only_get(ledger, "a")
    with pytest.raises(ProtocolError, match=f"^a: {message}"):
        ledger.received("a", replace(batch_for(asked), **change), 0.1)  # type: ignore[arg-type]


def test_more_samples_cannot_be_missing_than_there_were() -> None:
    """No shape is negative."""
    ledger = ready("a")
    want(ledger, 0, on_error="skip")
    asked = only_get(ledger, "a")
    with pytest.raises(ProtocolError, match="BATCH has tensors"):
        ledger.received("a", replace(batch_for(asked), missing=SAMPLES + 1), 0.1)


def test_a_batch_that_was_asked_of_another_server_is_not_taken() -> None:
    """Guessing an attempt is not enough."""
    ledger = ready("a", "b")
    want(ledger, 0)
    asked = only_get(ledger, "a")
    assert not ledger.received("b", batch_for(asked), 0.1)
    assert ledger.open == 1
    assert ledger.received("a", batch_for(asked), 0.2)


def test_a_batch_nobody_asked_for_is_not_taken() -> None:
    """Its name differs from that of the request whose attempt it claims."""
    ledger = ready("a")
    want(ledger, 0)
    asked = only_get(ledger, "a")
    assert not ledger.received("a", replace(batch_for(asked), batch=1), 0.1)
    assert ledger.open == 1


def test_a_batch_before_welcome_ends_the_feed() -> None:
    """Nobody can have asked for it."""
    ledger = Ledger("train", timeout=TIMEOUT, now=0.0)
    want(ledger, 0)
    ledger.add("a")
    ledger.connected("a", 0.0)
    with pytest.raises(ProtocolError, match="a: BATCH before WELCOME"):
        ledger.received("a", batch_for(replace(get(0), attempt=1)), 0.1)


@pytest.mark.parametrize("message", [Hello(), get(0), Cancel(epoch=0, batch=0), Ping(), Bye()], ids=lambda m: m.type)
def test_a_clients_message_from_a_server_ends_the_feed(message: Message) -> None:
    """Each direction has its messages."""
    ledger = ready("a")
    with pytest.raises(ProtocolError, match=f"a: {message.type} is no message from a server"):
        ledger.received("a", message, 0.1)


def test_a_welcome_must_bring_the_catalog_that_was_asked_for() -> None:
    """Without counts there is no plan."""
    ledger = Ledger("train", timeout=TIMEOUT, now=0.0)
    ledger.add("a")
    ledger.connected("a", 0.0)
    with pytest.raises(ProtocolError, match="a: WELCOME without the catalog that was asked for"):
        ledger.received("a", welcome(counts=False), 0.1)


def test_a_welcome_to_another_stream_ends_the_feed() -> None:
    """Nobody trains on val by accident; "" takes whatever the server's only stream is called."""
    for name, agrees in (("val", False), ("train", True), ("", True)):
        ledger = Ledger(name, timeout=TIMEOUT, now=0.0)
        ledger.add("a")
        ledger.connected("a", 0.0)
        if agrees:
            assert ledger.received("a", welcome(), 0.1)
            continue
        with pytest.raises(ProtocolError, match="a: WELCOME to stream 'train', not 'val'"):
            ledger.received("a", welcome(), 0.1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"catalog": "beef"}, "b: stream 'train' has catalog beef, but a has c0ffee; "),
        ({"fingerprint": "beef"}, "b: stream 'train' has fingerprint beef, but a has f00d; "),
        ({"batch_size": 5}, "b: stream 'train' has batch_size 5, but a has 4; "),
        ({"fields": (IMAGE,)}, "b: stream 'train' has fields (FieldSpec(name='image'"),
        ({"stream": "val"}, "b: stream 'val' has stream val, but a has train; "),
    ],
)
def test_servers_that_disagree_end_the_feed(change: dict[str, object], sentence: str) -> None:
    """Both sides of the disagreement are named, with the remedy."""
    ledger = ready("a")
    ledger.add("b")
    ledger.connected("b", 0.0)
    with pytest.raises(StreamMismatch) as caught:
        ledger.received("b", replace(welcome("b"), **change), 0.1)  # type: ignore[arg-type]
    assert str(caught.value).startswith(sentence)
    assert "all servers of a stream must serve the same shards" in str(caught.value)


def test_a_server_that_comes_back_different_ends_the_feed() -> None:
    """A restart with another pipeline is found out before the first batch."""
    ledger = ready("a")
    ledger.disconnected("a")
    ledger.connected("a", 1.0)
    with pytest.raises(StreamMismatch, match="fingerprint beef"):
        ledger.received("a", replace(welcome(), fingerprint="beef"), 1.1)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("version", ProtocolError),
        ("stream", StreamMismatch),
        ("fingerprint", StreamMismatch),
        ("protocol", ProtocolError),
    ],
)
def test_a_rejection_for_good_ends_the_feed(code: str, error: type[Exception]) -> None:
    """With the server's own words."""
    ledger = ready("a")
    with pytest.raises(error) as caught:
        ledger.received("a", Reject(code=code, reason="there is 'train'"), 0.1)
    assert type(caught.value) is error
    assert str(caught.value) == "a: there is 'train'"


def test_a_full_server_is_greeted_again_later() -> None:
    """What it was asked for goes elsewhere; after a while it is asked whether it has room."""
    ledger = ready("a", "b")
    want(ledger, 0)
    only_get(ledger, "a")
    ledger.received("a", Reject(code="limit", reason="busy"), 0.1)
    assert only_get(ledger, "b").batch == 0
    ledger.tick(0.1)
    assert sent(ledger, "a") == []
    ledger.tick(0.1 + PING_EVERY)
    assert sent(ledger, "a") == [Hello(stream="train", catalog="c0ffee")]
    ledger.received("a", welcome(counts=False), 1.0)
    want(ledger, 1)
    assert only_get(ledger, "a").batch == 1


# Time.


def test_servers_are_pinged_regularly() -> None:
    """Every PING_EVERY, and not because somebody calls more often."""
    ledger = ready("a")
    pings = []
    for tenth in range(1, 21):
        now = tenth * PING_EVERY / 10
        ledger.received("a", Pong(progress=0, queue=0), now)
        ledger.tick(now)
        pings += sent(ledger)
    assert pings == [Ping(), Ping()]


def test_nobody_making_progress_ends_the_feed_exactly_at_the_deadline() -> None:
    """Answering pings is not enough; the error says what is known of each server."""
    ledger = ready("a", "b")
    want(ledger, 0, now=5.0)
    ledger.disconnected("b")
    ledger.received("a", Pong(progress=7, queue=3), 5.0)
    for now in (6.0, 20.0, 34.9):
        ledger.received("a", Pong(progress=7, queue=3), now)
        ledger.tick(now)
    with pytest.raises(ServerUnavailable) as caught:
        ledger.tick(35.0)
    assert caught.value.servers == {"a": "answers, but makes no progress", "b": "no connection"}
    assert caught.value.timeout == TIMEOUT


def test_progress_counters_that_move_hold_the_deadline_off() -> None:
    """A batch may take longer than the timeout, as long as parts of it get done."""
    ledger = ready("a")
    want(ledger, 0)
    for number in range(1, 10):
        now = number * (TIMEOUT - 1)
        ledger.received("a", Pong(progress=number, queue=1), now)
        ledger.tick(now)
    ledger.tick(now + TIMEOUT - 0.1)
    with pytest.raises(ServerUnavailable):
        ledger.tick(now + TIMEOUT)


def test_how_many_workers_have_work_is_remembered_of_the_last_answers() -> None:
    """Of those servers that are there; nobody knows before one has answered a few times."""
    ledger = ready("a", "b")
    for queue in (9, 0, 0, 0):
        assert ledger.working() is None
        ledger.received("a", Pong(progress=0, queue=queue), 0.0)
    assert ledger.working() == 0.25
    for _ in range(ANSWERS):
        ledger.received("a", Pong(progress=0, queue=1), 0.0)
    assert ledger.working() == 1.0
    ledger.received("b", Pong(progress=0, queue=0), 0.0)
    assert ledger.working() == ANSWERS / (ANSWERS + 1)
    ledger.disconnected("a")
    assert ledger.working() is None


@pytest.mark.parametrize(("queue", "idle", "share"), [(9, 0, 1.0), (9, 3, 0.25), (9, 4, 0.0), (9, 5, 0.0), (0, 0, 0.0)])
def test_workers_without_work_do_not_count(queue: int, idle: int, share: float) -> None:
    """A server that does not tell who is idle has as many busy as it has, if it has work; one that lies has none."""
    ledger = ready("a", a=4)
    for _ in range(ANSWERS_LEAST):
        ledger.received("a", Pong(progress=0, queue=queue, idle=idle), 0.0)
    assert ledger.working() == share


def test_the_progress_of_a_server_that_was_asked_nothing_does_not_count() -> None:
    """It works for others."""
    ledger = ready("a", "b")
    want(ledger, 0)
    only_get(ledger, "a")
    for now in (10.0, 20.0, 29.0):
        ledger.received("a", Pong(progress=0, queue=1), 0.0)
        ledger.received("b", Pong(progress=int(now), queue=0), now)
    with pytest.raises(ServerUnavailable):
        ledger.tick(30.0)


def test_a_batch_that_comes_holds_the_deadline_off() -> None:
    """Every reply is progress."""
    ledger = ready("a")
    want(ledger, 0, 1)
    first, _ = gets(ledger)["a"]
    ledger.received("a", batch_for(first), 29.0)
    ledger.tick(58.9)
    with pytest.raises(ServerUnavailable):
        ledger.tick(59.0)


def test_the_first_welcome_holds_the_deadline_off_and_no_other() -> None:
    """The first is what the user waited for. A server that comes back again and again has done nothing yet."""
    ledger = Ledger("train", timeout=TIMEOUT, now=0.0)
    ledger.add("a")
    ledger.connected("a", 28.0)
    ledger.received("a", welcome(), 29.0)
    want(ledger, 0, now=29.0)
    ledger.disconnected("a")
    ledger.connected("a", 57.0)
    ledger.received("a", welcome(counts=False), 58.0)
    ledger.tick(58.9)
    with pytest.raises(ServerUnavailable):
        ledger.tick(59.0)


@pytest.mark.parametrize("how", ["crash", "reject"])
def test_a_server_that_loops_ends_in_an_error(how: str) -> None:
    """Each time it is greeted, asked, and heard to have done something, but never for us."""
    ledger = ready("a")
    want(ledger, 0)
    for second in range(1, int(TIMEOUT) + 1):
        ledger.tick(second - 0.5)
        if how == "crash":
            ledger.disconnected("a")
            ledger.connected("a", second)
        else:
            ledger.received("a", Reject(code="limit", reason=""), second)
        ledger.received("a", welcome(counts=False), second)
        assert ledger.describe() == {"a": "ready"}
        ledger.received("a", Pong(progress=second, queue=0), second)
    with pytest.raises(ServerUnavailable):
        ledger.tick(TIMEOUT)


def test_a_late_batch_is_no_progress() -> None:
    """Nobody is served by a duplicate."""
    ledger = ready("a")
    want(ledger, 0, 1)
    first, _ = gets(ledger)["a"]
    ledger.received("a", batch_for(first), 1.0)
    ledger.received("a", batch_for(first), 29.0)
    with pytest.raises(ServerUnavailable):
        ledger.tick(31.0)


# Servers that answer and get nowhere.


STUCK_AFTER = PATIENCE * TIMEOUT


def stuck_a() -> tuple[Ledger, Get, Get]:
    """Return a ledger where a is stuck with batch 0, and b was asked for it, and what the two were asked."""
    ledger = ready("a", "b")
    want(ledger, 0)
    first = only_get(ledger, "a")
    chatter(ledger, "a", "b", until=STUCK_AFTER)
    assert gets(ledger) == {}
    chatter(ledger, "a", "b", start=STUCK_AFTER, until=STUCK_AFTER + PING_EVERY)
    assert ledger.describe() == {"a": "answers, but makes no progress", "b": "ready"}
    return ledger, first, only_get(ledger, "b")


def test_what_a_stuck_server_owes_is_asked_elsewhere() -> None:
    """It gets nothing new; the first reply wins, and it stays stuck though nothing is left that it owes."""
    ledger, _, second = stuck_a()
    want(ledger, 1, now=8.0)
    assert only_get(ledger, "b").batch == 1
    assert ledger.received("b", batch_for(second), 8.0)
    assert sent(ledger, "a") == [Cancel(epoch=0, batch=0)]
    want(ledger, 2, 3, now=8.0)
    assert [g.batch for g in gets(ledger)["b"]] == [2, 3]


def test_a_stuck_server_whose_count_moves_is_ready() -> None:
    """It is asked again, and what it owes is covered by both."""
    ledger, _, _ = stuck_a()
    ledger.received("a", Pong(progress=1, queue=0), 8.0)
    assert ledger.describe()["a"] == "ready"
    want(ledger, 1, 2, now=8.0)
    assert {s: len(asked) for s, asked in gets(ledger).items()} == {"a": 1, "b": 1}


def test_a_stuck_server_whose_batch_comes_is_ready() -> None:
    """And the other one is told to stop."""
    ledger, first, _ = stuck_a()
    assert ledger.received("a", batch_for(first), 8.0)
    assert list(ledger.outbox) == [Outgoing("b", Cancel(epoch=0, batch=0))]
    assert ledger.describe()["a"] == "ready"


def test_a_stuck_server_that_falls_silent_and_speaks_is_still_stuck() -> None:
    """Speaking is no progress."""
    ledger, _, _ = stuck_a()
    chatter(ledger, "b", start=8.0, until=8.0 + SILENCE)
    assert ledger.describe()["a"] == "silent"
    chatter(ledger, "a", "b", start=8.0 + SILENCE, until=9.0 + SILENCE)
    assert ledger.describe()["a"] == "answers, but makes no progress"
    assert gets(ledger) == {}


def test_a_stuck_server_that_owes_nothing_is_tried_when_no_other_is_ready() -> None:
    """Its count cannot move while nobody asks it for anything."""
    ledger, _, second = stuck_a()
    ledger.received("b", batch_for(second), 8.0)
    ledger.disconnected("b")
    want(ledger, 1, now=8.0)
    assert gets(ledger) == {}
    chatter(ledger, "a", start=8.0, until=8.5)
    assert only_get(ledger, "a").batch == 1


def test_a_server_owes_nothing_between_requests() -> None:
    """However long it was not asked."""
    ledger = ready("a")
    chatter(ledger, "a", until=100.0)
    want(ledger, 0, now=100.0)
    chatter(ledger, "a", start=100.0, until=100.0 + STUCK_AFTER)
    assert ledger.describe() == {"a": "ready"}


def test_a_short_timeout_makes_no_server_stuck_at_once() -> None:
    """Two SILENCEs are left to the slowest part."""
    ledger = ready("a", timeout=6.0)
    want(ledger, 0)
    chatter(ledger, "a", until=2 * SILENCE)
    assert ledger.describe() == {"a": "ready"}
    chatter(ledger, "a", start=2 * SILENCE, until=2 * SILENCE + PING_EVERY)
    assert ledger.describe() == {"a": "answers, but makes no progress"}


# Late batches.


def at_a_pace(ledger: Ledger, *, batches: int = 100, seconds: float = 1.0) -> float:
    """Have so many batches come, each after so long; return the time then."""
    now = 0.0
    for number in range(1000, 1000 + batches):
        want(ledger, number, now=now)
        now += seconds
        ((server, (asked,)),) = gets(ledger).items()
        assert ledger.received(server, batch_for(asked), now)
    ledger.outbox.clear()
    return now


def alive(ledger: Ledger, *servers: str, now: float) -> None:
    """Have servers get on with something."""
    for server in servers:
        ledger.received(server, Pong(progress=round(1000 * now), queue=0), now)
    ledger.tick(now)


def test_a_batch_that_is_late_is_asked_of_a_second_server() -> None:
    """After three times what batches take, and half a second; not before, and not of a third."""
    ledger = ready("a", "b", "c")
    began = at_a_pace(ledger)
    want(ledger, 0, 1, now=began)
    ((slow, (first,)), _) = gets(ledger).items()
    due = began + LATE * 1.0 + LATE_SECONDS
    alive(ledger, "a", "b", "c", now=due - 0.01)
    assert not gets(ledger)
    alive(ledger, "a", "b", "c", now=due + 0.01)
    ((second, (hedge,)),) = gets(ledger).items()
    assert second != slow
    assert (hedge.batch, ledger.hedged, ledger.asked_again) == (0, 1, 0)
    alive(ledger, "a", "b", "c", now=due + 10)
    assert not gets(ledger)
    assert ledger.received(second, batch_for(hedge), due + 10)
    assert Outgoing(slow, Cancel(epoch=0, batch=0)) in ledger.outbox
    assert not ledger.received(slow, batch_for(first), due + 11)
    assert ledger.duplicates == 1


def test_few_batches_are_asked_of_two_servers_for_being_late() -> None:
    """Where all become slow, asking twice would make it worse."""
    ledger = ready("a", "b")
    now = at_a_pace(ledger, batches=40)
    for number in range(160):
        want(ledger, number, now=now)
        alive(ledger, "a", "b", now=now + 7)
        now += 8
        ((server, (asked,)), *_) = gets(ledger).items()
        assert ledger.received(server, batch_for(asked), now)
        ledger.outbox.clear()
    assert 2 <= ledger.hedged <= HEDGES * 200 + 1


def test_nobody_is_asked_twice_before_it_is_known_what_batches_take() -> None:
    """The first batches of a stream may take long."""
    ledger = ready("a", "b")
    want(ledger, 0)
    gets(ledger)
    alive(ledger, "a", "b", now=3.0)
    assert not gets(ledger)


def test_the_only_server_is_asked_again_after_half_the_timeout() -> None:
    """Its reply may have been lost, though nothing tells how. Asked sooner it would do the same again, later."""
    ledger = ready("a")
    began = at_a_pace(ledger)
    want(ledger, 0, now=began)
    first = only_get(ledger, "a")
    alive(ledger, "a", now=began + TIMEOUT / 2 - 0.1)
    assert not gets(ledger)
    alive(ledger, "a", now=began + TIMEOUT / 2)
    again = only_get(ledger, "a")
    assert (again.batch, ledger.hedged, ledger.asked_again) == (0, 0, 1)
    alive(ledger, "a", now=began + TIMEOUT)
    assert only_get(ledger, "a").attempt > again.attempt > first.attempt
    assert ledger.received("a", batch_for(first), began + TIMEOUT + 1)
    assert sent(ledger) == [Cancel(epoch=0, batch=0)]  # of the last one, which would use up credit there


def test_a_server_that_leaves_is_not_asked_again() -> None:
    """What it owes will come, or its connection end."""
    ledger = ready("a")
    began = at_a_pace(ledger)
    want(ledger, 0, now=began)
    gets(ledger)
    ledger.received("a", Drain(), began)
    alive(ledger, "a", now=began + TIMEOUT / 2)
    assert not gets(ledger)


def test_a_process_that_was_stopped_does_not_blame_the_servers() -> None:
    """The deadline moves by as much."""
    ledger = ready("a")
    want(ledger, 0)
    ledger.stood_still(100.0)
    ledger.tick(100.0 + TIMEOUT - 0.1)
    with pytest.raises(ServerUnavailable):
        ledger.tick(100.0 + TIMEOUT)


@pytest.mark.parametrize("message", [Drain(), Pong(progress=7, queue=0), Ping()])
def test_what_came_damaged_is_not_heeded(message: Message) -> None:
    """Not even to say that no server may send it."""
    ledger = ready("a")
    want(ledger, 0)
    assert not ledger.received("a", message, 0.1, intact=False)
    assert ledger.describe() == {"a": "ready"}


# Damage.


def test_a_damaged_batch_is_asked_again() -> None:
    """It has not come: somebody is asked as if it never had."""
    ledger = ready("a")
    want(ledger, 0)
    asked = only_get(ledger, "a")
    assert ledger.wants("a", batch_for(asked))
    assert not ledger.received("a", batch_for(asked), 1.0, intact=False)
    again = only_get(ledger, "a")
    assert again.batch == 0
    assert again.attempt != asked.attempt
    assert (ledger.damaged, ledger.asked_again, ledger.open) == (1, 1, 1)
    assert ledger.received("a", batch_for(again), 2.0)


def test_a_damaged_welcome_is_none() -> None:
    """A new server is greeted again; one of many can be spared until then."""
    ledger = ready("a")
    ledger.add("b")
    ledger.connected("b", 0.0)
    assert not ledger.received("b", welcome("b"), 0.1, intact=False)
    assert ledger.describe()["b"] == "connected, but no answer yet"
    ledger.tick(PING_EVERY)
    assert Hello in {type(message) for message in sent(ledger, "b")}


@pytest.mark.parametrize("reader", ["client", "server"])
def test_a_message_that_nobody_can_read_puts_everything_in_doubt(reader: str) -> None:
    """It may have been a GET, or the answer to one. All that is open with that server is asked again, nothing else."""
    ledger = ready("a", "b")
    want(ledger, 0, 1, 2)
    asked = gets(ledger)
    if reader == "server":
        ledger.received("a", Reject(code="damaged", reason=""), 0.1)
    else:
        ledger.garbled("a", 0.1)
    again = [get.batch for gets_ in gets(ledger).values() for get in gets_]
    assert sorted(again) == sorted(get.batch for get in asked["a"])
    assert ledger.damaged == 1
    for get_ in asked["a"]:
        assert ledger.received("a", batch_for(get_), 0.2)  # it was not that one: the better


def test_a_server_that_cannot_be_read_at_all_ends_the_feed() -> None:
    """Eight damaged messages in a row are no accident; an intact batch between them begins a new row."""
    ledger = ready("a")
    want(ledger, 0, 1)
    for _ in range(DAMAGES - 1):
        ledger.garbled("a", 0.1)
    asked = gets(ledger)["a"][-1]
    assert ledger.received("a", batch_for(asked), 0.2)
    for _ in range(DAMAGES - 1):
        ledger.garbled("a", 0.3)
    with pytest.raises(ProtocolError, match=r"^a: 8 messages in a row came damaged; either"):
        ledger.garbled("a", 0.4)


def test_what_cannot_be_read_before_any_welcome_is_no_server() -> None:
    """A wrong port shows at once."""
    ledger = Ledger("train", timeout=TIMEOUT, now=0.0)
    ledger.add("a")
    ledger.connected("a", 0.0)
    with pytest.raises(ProtocolError, match="no feedmill server"):
        ledger.garbled("a", 0.1)


def test_memory_is_needed_only_for_what_is_wanted() -> None:
    """The first WELCOME and batches that were asked for; the ledger says so before anything is received."""
    ledger = Ledger("train", timeout=TIMEOUT, now=0.0)
    ledger.add("a")
    ledger.connected("a", 0.0)
    assert ledger.wants("a", welcome())
    ledger.received("a", welcome(), 0.0)
    assert not ledger.wants("a", welcome())
    want(ledger, 0)
    asked = gets(ledger)["a"][0]
    assert ledger.wants("a", batch_for(asked))
    assert not ledger.wants("a", batch_for(replace(asked, batch=1)))
    assert not ledger.wants("a", Pong(progress=0, queue=0))
    with pytest.raises(ProtocolError, match="has tensors"):
        ledger.wants("a", replace(batch_for(asked), tensors=(TensorSpec("int64", (1,)),)))


# Slow links.


class SlowLink:
    """A server that makes batches at once, behind a link that needs long for each. A PONG waits its turn."""

    def __init__(self, ledger: Ledger, name: str, seconds: float) -> None:
        self.ledger, self.name, self.seconds = ledger, name, seconds
        self.queue: list[Message] = []
        self.free_at = 0.0

    def take(self, message: Message, now: float) -> None:
        match message:
            case Get():
                self.queue.append(message)
            case Ping():
                self.queue.append(Pong(progress=0, queue=0))
            case Cancel():  # too late for what is under way
                self.queue[1:] = [m for m in self.queue[1:] if not isinstance(m, Get) or m.batch != message.batch]
        if len(self.queue) == 1:
            self.free_at = now + self.cost()

    def cost(self) -> float:
        return self.seconds if isinstance(self.queue[0], Get) else 0.0

    def deliver(self, now: float) -> int:
        came = 0
        while self.queue and self.free_at <= now:
            message = self.queue.pop(0)
            said = batch_for(message) if isinstance(message, Get) else message
            came += self.ledger.received(self.name, said, now)
            if self.queue:
                self.free_at = now + self.cost()
        return came


@pytest.mark.parametrize(("servers", "most"), [("a", 1), ("abcd", 2)])
@pytest.mark.parametrize("seconds", [0.5, 2.2, 3.0, 7.0])
@pytest.mark.parametrize("window", [1, 2, 4])
def test_a_slow_link_is_used_and_not_asked_in_vain(servers: str, most: int, seconds: float, window: int) -> None:
    """Every batch comes. One server is asked once for each; of several alike at most two are, and none twice."""
    ledger = ready(*servers)
    links = {name: SlowLink(ledger, name, seconds) for name in servers}
    asked: dict[int, list[str]] = {}
    now, wanted, came = 0.0, 0, 0
    while came < 40:
        while ledger.open < window * len(servers):
            want(ledger, wanted, now=now)
            wanted += 1
        for server, message, _ in list(ledger.outbox):
            if isinstance(message, Get):
                asked.setdefault(message.batch, []).append(server)
            links[server].take(message, now)
        ledger.outbox.clear()
        busy = [link.free_at for link in links.values() if link.queue]
        now = min([ledger.wake_at(), *busy])
        came += sum(link.deliver(now) for link in links.values())
        ledger.tick(now)
    assert max(map(len, asked.values())) <= most
    assert all(len(set(names)) == len(names) for names in asked.values())


def test_only_what_brings_something_new_has_a_payload_that_is_wanted() -> None:
    """What is said besides batches and the first WELCOME is taken in by the ledger alone."""
    ledger = ready("a")
    want(ledger, 0)
    for message in (Pong(progress=0, queue=0), fail_for(only_get(ledger, "a")), Drain()):
        assert not ledger.received("a", message, 0.1)


def test_a_feed_that_wants_nothing_may_wait_for_ever() -> None:
    """Validation between epochs takes as long as it takes; the clock starts with the next batch that is wanted."""
    ledger = ready("a")
    chatter(ledger, "a", until=1000.0)
    want(ledger, 0, now=1000.0)
    chatter(ledger, "a", start=1000.0, until=1000.0 + TIMEOUT - 1)
    with pytest.raises(ServerUnavailable):
        chatter(ledger, "a", start=1000.0 + TIMEOUT - 1, until=1000.0 + TIMEOUT + 1)


def test_a_feed_without_a_server_ends_at_the_deadline_though_nothing_is_wanted_yet() -> None:
    """Before the first WELCOME there is nothing that could be wanted, and the user waits all the same."""
    ledger = Ledger("train", timeout=TIMEOUT, now=3.0)
    ledger.tick(32.9)
    with pytest.raises(ServerUnavailable, match="the name resolves to no address"):
        ledger.tick(33.0)


def test_the_next_tick_is_due_when_there_is_something_to_do() -> None:
    """A ping, or the deadline, whichever comes first; a lost server needs none."""
    ledger = Ledger("train", timeout=0.2, now=0.0)
    assert ledger.wake_at() == 0.2
    ledger = ready("a")
    assert ledger.wake_at() == PING_EVERY
    ledger.tick(0.7)
    assert ledger.wake_at() == 0.7 + PING_EVERY
    ledger = ready("a", timeout=0.7)
    want(ledger, 0, now=0.1)
    ledger.tick(0.6)
    assert ledger.wake_at() == 0.1 + 0.7


def test_silence_is_found_with_the_next_ping() -> None:
    """Half a second late at most."""
    ledger = ready("a")
    ledger.received("a", Pong(progress=0, queue=0), 0.1)
    for now in (0.5, 1.0, 1.5, 2.0):
        ledger.tick(now)
    assert ledger.describe() == {"a": "ready"}
    ledger.tick(2.5)
    assert ledger.describe() == {"a": "silent"}


def test_ticking_when_it_is_due_gets_something_done() -> None:
    """At no origin of the clock does rounding leave a virtual clock standing at the moment it was told to wake."""
    random = Random(0)
    for _ in range(2000):
        now = random.uniform(0, 10 ** random.randint(0, 9))
        ledger = Ledger("", timeout=random.uniform(0.001, 0.4), now=now)
        ledger.add("a")
        ledger.connected("a", now)
        with pytest.raises(ServerUnavailable):
            ledger.tick(ledger.wake_at())
        ledger = Ledger("", timeout=inf, now=now)
        ledger.add("a")
        ledger.connected("a", now)
        ledger.outbox.clear()
        ledger.tick(ledger.wake_at())
        assert ledger.outbox


def test_no_timeout_means_none() -> None:
    """An infinite one never comes."""
    ledger = Ledger("", timeout=inf, now=0.0)
    ledger.tick(1e12)
    assert ledger.wake_at() == 1e12 + PING_EVERY


# Any interleaving.


class Walk:
    """Servers that come, go, hang, fail, answer late and twice, drawn from a seed.

    The network keeps each GET that a server was sent, for ever: any of them may be answered at any time, again, and
    after the connection that it came over is gone. After every step the rules of the ledger's docstring must hold.
    """

    servers = ("a", "b", "c")

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.ledger = Ledger("train", timeout=8 * SILENCE, now=0.0)  # stuck after two
        self.connections: set[str] = set()
        self.known: set[str] = set()
        self.asked: list[tuple[str, Get]] = []
        self.attempts: set[int] = set()
        self.wanted: set[int] = set()
        self.accepted = 0
        self.open: set[tuple[str, int]] = set()
        self.seen: set[str] = set()
        self.failures: dict[int, int] = {}

    def step(self) -> None:
        act = self.random.choice(
            [
                *[self.want] * 6,
                *[self.reply] * 6,
                *[self.join] * 3,
                *[self.fail] * 2,
                *[self.tick] * 2,
                *[self.speak] * 2,
                self.connect,
                self.disconnect,
                self.remove,
                self.forget,
            ]
        )
        act()
        self.deliver()
        self.check()

    # What happens.

    def want(self) -> None:
        number = self.random.randrange(8)
        if number not in self.wanted:
            self.wanted.add(number)
            self.failures[number] = 0
            want(self.ledger, number, now=self.now)

    def forget(self) -> None:
        number = self.random.randrange(8)
        self.wanted.discard(number)
        self.ledger.forget((0, number))

    def connect(self) -> str:
        server = self.random.choice(self.servers)
        self.known.add(server)
        self.connections.add(server)
        self.ledger.add(server)
        self.ledger.connected(server, self.now)
        return server

    def join(self) -> None:
        self.ledger.received(self.connect(), welcome(workers=self.random.randint(1, 3)), self.now)

    def disconnect(self) -> None:
        server = self.random.choice(self.servers)
        if server in self.known:
            self.connections.discard(server)
            self.ledger.disconnected(server)

    def remove(self) -> None:
        server = self.random.choice(self.servers)
        self.known.discard(server)
        self.connections.discard(server)
        self.ledger.remove(server)

    def speak(self) -> None:
        server = self.random.choice(self.servers)
        messages: list[Message] = [Drain(), Reject(code="limit", reason=""), welcome()]
        messages += [Pong(progress=self.random.randint(0, 1), queue=0)] * 3
        message = self.random.choice(messages)
        if server in self.known:
            if isinstance(message, Reject):
                self.open = {(s, number) for s, number in self.open if s != server}
            self.ledger.received(server, message, self.now)

    def reply(self) -> None:
        server, asked = self.random.choice(self.asked or [("", get(0))])
        if server not in self.known:
            return
        duplicates = self.ledger.duplicates
        if self.ledger.received(server, batch_for(asked), self.now):
            self.wanted.remove(asked.batch)  # accepted once for each time that it was wanted
            self.accepted += 1
        else:
            assert self.ledger.duplicates == duplicates + 1

    def fail(self) -> None:
        server, asked = self.random.choice(self.asked or [("", get(0))])
        if server not in self.known:
            return
        if self.open_with().get(asked.batch, {}).get(server) == asked.attempt:
            if not self.ledger._servers[server].draining:
                if self.failures[asked.batch] == ATTEMPTS - 1:
                    return  # once more ends the feed
                self.failures[asked.batch] += 1
            self.open.remove((server, asked.batch))
        self.ledger.received(server, fail_for(asked), self.now)

    def tick(self) -> None:
        self.now += self.random.choice([0.1, PING_EVERY, SILENCE])
        with suppress(ServerUnavailable):  # when that is due is no matter of this test
            self.ledger.tick(self.now)

    # What must hold.

    def open_with(self) -> dict[int, dict[str, int]]:
        return {key[1]: request.asked for key, request in self.ledger._requests.items()}

    def deliver(self) -> None:
        """Take what the ledger sends. Nothing may go where there is no connection, no request to who is not ready."""
        for server, message, payload in self.ledger.outbox:
            assert server in self.connections or isinstance(message, Bye)
            if isinstance(message, Hello):
                self.open = {(s, number) for s, number in self.open if s != server}
            if isinstance(message, Cancel):
                self.open.discard((server, message.batch))
            if isinstance(message, Get):
                assert self.ledger.describe()[server] == State.READY.value
                assert message.attempt not in self.attempts
                assert (server, message.batch) not in self.open  # never of one that it is open with
                assert replace(message, attempt=0) == get(message.batch)
                assert payload == b"spans %d" % message.batch
                self.attempts.add(message.attempt)
                self.asked.append((server, message))
                self.open.add((server, message.batch))
        self.ledger.outbox.clear()

    def check(self) -> None:
        open_with = self.open_with()
        assert open_with.keys() == self.wanted
        assert self.ledger.open == len(self.wanted)
        states = self.ledger.describe()
        self.seen.update(states.values())
        good = {State.READY.value, State.DRAINING.value}
        covered = {number for number, servers in open_with.items() if any(states[s] in good for s in servers)}
        resting = {key[1] for key, request in self.ledger._requests.items() if self.now < request.rested}
        if State.READY.value in states.values():
            assert covered >= self.wanted - resting
        assert covered | {key[1] for key in self.ledger._waiting} == self.wanted
        by_server = {(s, key[1]) for s, known in self.ledger._servers.items() for key in known.asked}
        assert by_server == {(s, number) for number, servers in open_with.items() for s in servers}
        self.open = by_server

    def settle(self) -> None:
        """One server that answers is enough: everything wanted comes, once."""
        for server in self.servers:
            self.connections.discard(server)
            self.ledger.remove(server)
            self.deliver()
        self.connections.add("d")
        self.now += 8 * BACKOFF
        self.ledger.add("d")
        self.ledger.connected("d", self.now)
        self.ledger.received("d", welcome("d"), self.now)
        before = len(self.asked)
        self.deliver()
        assert {asked.batch for _, asked in self.asked[before:]} == self.wanted
        for server, asked in self.asked[before:]:
            assert self.ledger.received(server, batch_for(asked), self.now)
        assert self.ledger.open == 0


@pytest.mark.parametrize("seed", range(200))
def test_under_any_interleaving_each_batch_comes_once(seed: int) -> None:
    """What is wanted is open with a server, or waits for one, and is accepted once, whatever happens."""
    walk = Walk(seed)
    for _ in range(150):
        walk.step()
    assert walk.accepted > 3
    walk.settle()


def test_the_walk_gets_everywhere() -> None:
    """There is no state that it never sees."""
    seen: set[str] = set()
    for seed in range(20):
        walk = Walk(seed)
        for _ in range(150):
            walk.step()
        seen |= walk.seen
    assert seen == {state.value for state in State}
