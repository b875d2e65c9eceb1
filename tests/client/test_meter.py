import pytest

from feedmill.meter import Arrival, Meter, Rates

NOTHING = Rates(0.0, 0.0, 0.0, None, None)


def arrival(at: float, server: str = "a", waited: float = 0.5) -> Arrival:
    return Arrival(at, server, samples=10, nbytes=1000, waited=waited)


def metered(*arrivals: Arrival, window: float = 4.0) -> Meter:
    meter = Meter(window)
    for one in arrivals:
        meter.add(one)
    return meter


def test_before_the_first_batch_there_is_nothing() -> None:
    """Nobody has sent, and nothing divides by zero."""
    reading = metered().read(100.0)
    assert (reading.seconds, reading.total, reading.servers, reading.batches) == (0.0, NOTHING, {}, 0)


def test_the_first_batch_starts_the_clock_and_is_not_measured() -> None:
    """Two more within two seconds are one a second."""
    reading = metered(arrival(100, waited=9), arrival(101), arrival(102)).read(102.0)
    assert reading.seconds == 2.0
    assert reading.total == Rates(1.0, 10.0, 1000.0, 0.5, 0.5)
    assert (reading.batches, reading.samples) == (3, 30)


def test_rates_are_those_of_the_last_seconds() -> None:
    """What is older than the window no longer counts, but for the sums since the start."""
    reading = metered(*(arrival(100 + 0.1 * n) for n in range(21)), arrival(109)).read(110.0)
    assert reading.total.batches_per_second == 0.25
    assert reading.batches == 22


def test_rates_fall_when_nothing_comes() -> None:
    """A stream that has come to a halt reads zero after the window, and has no waits."""
    meter = metered(arrival(100), arrival(101), arrival(102))
    assert [meter.read(now).total.batches_per_second for now in (102.0, 104.0, 107.0)] == [1.0, 0.5, 0.0]
    assert meter.read(107.0).total == NOTHING


def test_each_server_has_its_own_rates() -> None:
    """They add up to the total, and who has stopped sending is still there."""
    meter = metered(arrival(100, "a"), arrival(101, "b"), arrival(102, "b"), arrival(102, "a"))
    reading = meter.read(102.0)
    assert {name: rates.samples_per_second for name, rates in reading.servers.items()} == {"a": 5.0, "b": 10.0}
    assert reading.total.samples_per_second == 15.0
    assert meter.read(120.0).servers == {"a": NOTHING, "b": NOTHING}


def test_waits_are_those_of_single_batches() -> None:
    """One slow batch of hundred moves the p99 and not the p50."""
    waits = [0.01] * 99 + [5.0]
    reading = metered(arrival(100), *(arrival(101, waited=waited) for waited in waits)).read(101.0)
    assert reading.total.wait_p50 == pytest.approx(0.01)
    assert reading.total.wait_p99 is not None
    assert 0.01 < reading.total.wait_p99 < 5.0
