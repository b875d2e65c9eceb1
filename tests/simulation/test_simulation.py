"""Worlds that hold, mutants that do not, and whether the simulator does what it promises itself."""

import os
import subprocess
import sys
from collections import Counter, deque
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import pytest

from simulation.mutants import MUTANTS, ReadsWhatIsLost
from simulation.scenario import Fault, Kind, draw
from simulation.world import Failure, Subject, play, play_scenario

SEEDS = int(os.environ.get("SEEDS", "5000"))
"""Worlds that are played: for more, `make chaos SEEDS=100000`."""

CAUGHT_WITHIN = 200
"""Worlds in which every mutant must have been caught."""

TESTS = Path(__file__).parent.parent


def simulate(*arguments: str, timeout: float = 60.0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the simulator's command."""
    path = os.pathsep.join([str(TESTS), *sys.path])
    return subprocess.run(
        [sys.executable, "-m", "simulation", *arguments],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.timeout(900)
def test_whatever_happens_trainers_get_their_batches_or_are_told_in_time() -> None:
    """Thousands of worlds, each with its own servers, trainers and misfortunes, all hold."""
    played = simulate("--seeds", f"0..{SEEDS - 1}", timeout=880.0)
    assert played.returncode == 0, played.stdout + played.stderr
    assert f"{SEEDS:,} worlds" in played.stdout


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_is_caught_within_a_few_worlds(mutant: str) -> None:
    """A bug that is put in on purpose is found, and the failure says how to see it again."""
    with pytest.raises(Failure, match=rf"(?s)seed \d+.*--seeds (\d+)\.\.\1 --mutant {mutant} --trace"):
        deque(map(play, range(CAUGHT_WITHIN), repeat(MUTANTS[mutant])), maxlen=0)


def test_what_a_lost_connection_brought_must_not_be_read_after_the_loss() -> None:
    """A server that says DRAIN and is back at once is used again, though the trainer learns all of it together."""
    calm = replace(draw(0), servers=1, workers=(1,), trainers=1, hopeless=False, on_error="skip", latency=0.01)
    drain = Fault(Kind.DRAIN, 2.0, 3.0, server=0)
    busy = Fault(Kind.STALL, 1.9, 8.0, trainer=0)
    scenario = replace(calm, pace=0.4, part_seconds=0.05, timeout=20.0, faults=(busy, drain))
    assert play_scenario(scenario).reached["DRAIN"]
    with pytest.raises(Failure, match="gives up, though a server was there"):
        play_scenario(scenario, Subject(ReadsWhatIsLost.__name__, trainer=ReadsWhatIsLost))


@pytest.mark.parametrize("seed", [101282, 106345])
def test_a_server_that_drains_fails_no_batch_for_good(seed: int) -> None:
    """A DRAIN that came damaged is followed by another before a FAIL, which would count otherwise."""
    assert play(seed).reached["DRAIN"]


def test_everything_that_may_happen_does_happen() -> None:
    """What is never provoked is not tested: a few worlds show every fault, and everything that it may lead to."""
    reached: Counter[str] = Counter()
    for seed in range(CAUGHT_WITHIN):
        reached += play(seed).reached
    outcomes = ("WELCOME", "BATCH", "PONG", "FAIL", "DRAIN", "asked again", "late replies", "a whole epoch")
    endings = ("no server is available", "a sample is blamed")
    assert [what for what in (*(kind.name for kind in Kind), *outcomes, *endings) if not reached[what]] == []


def test_a_seed_is_one_world_in_every_process() -> None:
    """What is replayed is what was seen, whatever order sets and dictionaries of strings have there."""
    one, other = (simulate("--seeds", "32..32", "--trace", PYTHONHASHSEED=seed) for seed in "12")
    assert one.returncode == 0, one.stdout + one.stderr
    assert len(one.stdout.splitlines()) > 100
    assert one.stdout == other.stdout


def test_a_failure_is_replayed_by_what_its_message_says() -> None:
    """The command in the message leads to the same failure, with everything that led to it."""
    found = simulate("--seeds", "0..9", "--jobs", "1", "--mutant", "CountsAttemptsAnew")
    assert found.returncode == 1
    failure, replay = found.stdout.strip().splitlines()[:2]
    assert failure.startswith("seed 0, at ")
    replayed = simulate(*replay.partition("simulation ")[2].split())
    assert replayed.returncode == 1
    assert failure in replayed.stdout.splitlines()
    assert len(replayed.stdout.splitlines()) > 10


def test_seeds_that_are_none_are_refused() -> None:
    """A range is two numbers; anything else is a mistake on the command line."""
    refused = simulate("--seeds", "all")
    assert refused.returncode == 2
    assert "expected two seeds, such as 0..999" in refused.stderr
