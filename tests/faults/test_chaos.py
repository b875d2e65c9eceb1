"""Thirty faults of all kinds under two trainers; `make chaos-real` strikes a thousand."""

from pathlib import Path

from faults.chaos import Chaos


def test_nothing_is_lost_double_or_wrong_in_chaos(tmp_path: Path) -> None:
    """Whatever is killed, stopped, ended and started again, both ranks have exactly their batches."""
    chaos = Chaos(tmp_path, servers=3, ranks=2, every=0.3, step=0.005, seed=3)
    figures = chaos.run(kills=30, batches=500)
    assert figures.sound, figures
    assert sum(figures.faults.values()) == 30
    assert len(figures.faults) >= 5, "many kinds of them"
    assert figures.batches >= 500
