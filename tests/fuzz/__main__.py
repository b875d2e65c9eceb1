"""The command ``python -m fuzz``, in ``tests``: fuzz everything, print a table, and the figures as JSON."""

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path

from fuzz import hostile_client, hostile_server, settings, tars
from fuzz.clock import clock
from fuzz.outcome import Outcome, fuzz

THINGS = ("client", "server", "tars", "indexes", "settings")


def main() -> int:
    """Fuzz from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000, help="messages, each way")
    parser.add_argument("--tars", type=int, default=200_000)
    parser.add_argument("--indexes", type=int, default=50_000)
    parser.add_argument("--settings", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the run to begin with")
    parser.add_argument("--only", choices=THINGS, action="append", help="one of them; may be said again")
    parser.add_argument("--json", type=Path, help="where to write the figures to")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # what a server says of each bad message
    outcomes = [one for thing in args.only or THINGS for one in run(thing, args)]
    found = json.dumps([vars(outcome) | {"rate": round(outcome.rate)} for outcome in outcomes], indent=1)
    if args.json:
        args.json.write_text(found)
    print(found)  # noqa: T201 # a command
    for outcome in outcomes:
        print(  # noqa: T201
            f"{outcome.name:10} {outcome.cases:>10,} cases {outcome.seconds:>7.1f} s {outcome.rate:>8,.0f}/s "
            f"{outcome.grown_bytes / 2**20:>6.1f} MiB more memory"
        )
    return 0


def run(thing: str, args: argparse.Namespace) -> list[Outcome]:
    """Fuzz one thing."""
    match thing:
        case "client":
            with clock():
                return [fuzz(thing, hostile_server.converse, args.frames, args.seed, args.first)]
        case "server":
            with clock():
                return [fuzz(thing, hostile_client.converse, args.frames, args.seed, args.first)]
        case "tars":
            return [fuzz(thing, tars.index, args.tars, args.seed, args.first)]
        case "indexes":
            return [fuzz(thing, tars.load, args.indexes, args.seed, args.first)]
        case _:
            with tempfile.TemporaryDirectory(prefix="feedmill-fuzz-") as folder:
                case = settings.merge(Path(folder) / "feedmill.toml")
                return [fuzz(thing, case, args.settings, args.seed, args.first)]


if __name__ == "__main__":
    sys.exit(main())
