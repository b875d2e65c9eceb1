"""``python -m benchmarks``: run the contenders that can run here, and print how they did."""

import argparse
import glob
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import photographs, rounds, tables
from .registry import CONTENDERS, Contender
from .rounds import Results, Settings


def main() -> int:
    """Run it; return the exit status: 1 if a contender failed."""
    args = _arguments()
    if args.table:
        print("\n\n".join(tables.whole(Results.load(args.table))))
        return 0
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "feedmill" / "benchmarks"
    shards = sorted(path for pattern in args.shards for path in glob.glob(pattern))  # noqa: PTH207 # any pattern
    if args.shards and not shards:
        sys.exit(f"no file matches {' '.join(args.shards)}")
    shards = [os.path.abspath(path) for path in shards or photographs.write(cache / "photographs")]  # noqa: PTH100
    try:
        results = Results.open(args.out, Settings(tuple(shards), args.images, args.workers, args.batch))
    except ValueError as error:
        sys.exit(str(error))
    pythons = dict(named.split("=", 1) for named in args.python)
    contenders = _present(args.only, pythons)

    def after(run: dict[str, Any]) -> None:
        results.save(args.out)
        figures = "  ".join(f"{key} {value:,.4g}" for key, value in run.get("figures", {}).items())
        print(f"{run['round'] + 1}  {run['contender']:<26}{figures or run['error']}", flush=True)

    rounds.run(results, contenders, args.rounds, pythons, cache, after)
    print("\n" + "\n\n".join(tables.whole(results)))
    return int(any(not results.has(contender.name, args.rounds - 1) for contender in contenders))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--shards", nargs="+", default=(), metavar="TAR", help="with members .jpg and .cls (default: generated)"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--images", type=int, default=6000, metavar="N", help="in each run (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images of a batch (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="REGEX", help="contenders whose name has a match")
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="FAMILY=PATH",
        help=f"the interpreter of some peers; families are {', '.join(_families())}",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results.json"), help="default: %(default)s; an earlier one goes on"
    )
    parser.add_argument("--table", type=Path, metavar="RESULTS", help="measure nothing, print what a file holds")
    args = parser.parse_args()
    for named in args.python:
        if named.partition("=")[0] not in _families() or "=" not in named:
            parser.error(f"--python {named}: expected FAMILY=PATH, with one of {', '.join(_families())}")
    return args


def _families() -> list[str]:
    return list(dict.fromkeys(contender.family for contender in CONTENDERS))


def _present(only: str, pythons: dict[str, str]) -> Sequence[Contender]:
    """Return those who can run, and name the others."""
    chosen = [contender for contender in CONTENDERS if re.search(only, contender.name)]
    lacking: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    present = []
    for contender in chosen:
        key = (pythons.get(contender.family, sys.executable), contender.needs)
        if key not in lacking:
            lacking[key] = rounds.missing(contender, key[0])
        if lacking[key]:
            print(f"-  {contender.name:<26}left out: no {', '.join(lacking[key])} in {key[0]}")
        else:
            present.append(contender)
    return present


if __name__ == "__main__":
    sys.exit(main())
