"""The simulator: the real ledger, broker and plan under a virtual clock, in a world that goes wrong on purpose.

One seed makes one world: servers, trainers, a network between them, and a list of what befalls them. It is played
until every trainer has what its plan says, or has been told in time that it cannot have it. Nothing sleeps, nothing is
random but the seed, so a failure is replayed by its number:

    PYTHONPATH=tests python -m simulation --seeds 4711..4711 --trace

Read `scenario` for what may happen, `oracle` for what must hold, `actors` and `world` for how it is played, and
`mutants` for the bugs that the simulator is known to find.
"""
