"""A share of the fuzzing that `make fuzz` does, from a seed of its own."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz import hostile_client, hostile_server, settings, tars
from fuzz.clock import clock
from fuzz.outcome import Outcome, fuzz

SEED = 1
MIB = 2**20


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Leave out of the log what is said of every bad message."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def assert_both(outcome: Outcome, *ends: str) -> None:
    """Assert that cases ended in all of these ways: fuzzing that refuses everything at the door finds nothing."""
    assert all(outcome.ends[end] > outcome.cases / 100 for end in ends), outcome.ends
    assert not outcome.ends["refused without a word"]


def test_a_client_survives_whatever_servers_send() -> None:
    """FeedmillError or nothing, in every state; no more memory than was asked for; what is taken can be unpacked."""
    with clock():
        outcome = fuzz("client", hostile_server.converse, 10_000, SEED)
    assert_both(outcome, "heard, by the ledger", "ProtocolError, at the door", "ProtocolError, by the ledger")
    assert outcome.grown_bytes < 64 * MIB


def test_a_server_survives_whatever_clients_send() -> None:
    """It answers, refuses or says nothing, and serves the next client; nothing is left of those who have gone."""
    with clock():
        outcome = fuzz("server", hostile_client.converse, 10_000, SEED)
    assert_both(outcome, "REJECT", "WELCOME", "nothing")
    assert outcome.grown_bytes < 64 * MIB


def test_a_shard_is_refused_or_indexed_within_its_bounds() -> None:
    """ShardError, or an index all of whose members can be read."""
    assert_both(fuzz("tars", tars.index, 10_000, SEED), "refused", "indexed")


def test_a_stored_index_is_refused_or_harmless() -> None:
    """ValueError, or an index that leads nowhere but into its shard."""
    assert_both(fuzz("indexes", tars.load, 3_000, SEED), "refused", "loaded")


def test_settings_are_refused_or_accepted(tmp_path: Path) -> None:
    """UsageError or a configuration, whatever file, environment and command line say."""
    assert_both(fuzz("settings", settings.merge(tmp_path / "feedmill.toml"), 2_000, SEED), "refused", "accepted")
