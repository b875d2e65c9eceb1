from feedmill.meter import Rates, Reading
from feedmill.monitor import table

FAST = Rates(12.5, 800.0, 120.4e6, 0.0123, 0.0345)


def test_a_table_has_a_row_for_each_server_and_one_for_all() -> None:
    """Figures have units and stand below each other; who has sent nothing is there with what is known of it."""
    reading = Reading(5.0, FAST, {"tcp://a:1": FAST}, batches=1234, samples=5)
    assert table(reading, {"tcp://a:1": "ready", "tcp://bb:1": "no connection"}, {"asked_again": 2, "damaged": 0}) == [
        "            batches/s  samples/s      MB/s  wait p50      p99",
        "tcp://a:1        12.5        800     120.4   12.3 ms   34.5 ms  ready",
        "tcp://bb:1" + " " * 53 + "no connection",
        "in all           12.5        800     120.4   12.3 ms   34.5 ms",
        "1,234 batches, 5 samples since the start, 2 asked again",
    ]
