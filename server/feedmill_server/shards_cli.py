"""``feedmill shards``: looks into shards without serving them. This file prints; nothing below it does."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from feedmill_protocol.errors import ShardError, UsageError
from feedmill_protocol.printing import printable

from .extraction import extract
from .fields import Field, MissingField, parse
from .inspection import described, members, problems, samples
from .listing import expand
from .shards import Shard, ShardStore

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``info``, ``cat`` and ``extract``."""
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    info = _command(
        commands, "info", _info, "say what shards hold: samples, members, sizes, keys, and what is wrong with them"
    )
    info.epilog = "Exits with 2 if a shard cannot be read. Indexes that are made are stored, as 'feedmill serve' does."
    info.add_argument("--json", action="store_true", help="print one JSON object for each shard, on a line")
    cat = _command(commands, "cat", _cat, "print one line for each sample: its key, and what its members are")
    _add_choice(cat)
    cat.add_argument("--raw", action="store_true", help="write the bytes of one field instead, one after the other")
    extraction = _command(commands, "extract", _extract, "write samples as files, named by key and extension")
    _add_choice(extraction)
    extraction.add_argument("-d", "--directory", type=Path, required=True, metavar="DIR", help="made if need be")
    extraction.add_argument("--force", action="store_true", help="replace files that exist")


def _command(commands: Any, name: str, action: Any, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + "."
    )
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="tar files; braces and globs are expanded")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder for indexes (default: beside the shards)")
    parser.set_defaults(action=action)
    return parser


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fields", metavar="NAMES", help="which members, as in 'ppm;png;jpg cls' (default: all)")
    parser.add_argument("-n", type=int, metavar="N", help="no more than N samples")
    parser.add_argument("--where", default="", metavar="PREFIX", help="only samples whose keys begin like this")


def run(args: argparse.Namespace) -> int:
    """Do what the subcommand says. Raises FeedmillError for what cannot be done."""
    return int(args.action(args))


def _info(args: argparse.Namespace) -> int:
    whole: Counter[str] = Counter()
    with ShardStore(expand(args.shards), cache=args.cache) as store:
        for i, name in enumerate(store.names):
            try:
                report = _report(store, i)
            except ShardError as error:
                whole["damaged"] += 1
                report = {"shard": name, "problems": [error.reason]}
            whole.update(samples=report.get("samples", 0), nbytes=report.get("bytes", 0))
            if args.json:
                print(json.dumps(report))
            else:
                _print_report(report)
    if not args.json and len(store) > 1:
        damaged = f", {whole['damaged']:,} of them cannot be read" if whole["damaged"] else ""
        print(f"{len(store):,} shards{damaged}: {whole['samples']:,} samples in {whole['nbytes']:,} bytes")
    return 2 if whole["damaged"] else 0


def _report(store: ShardStore, i: int) -> dict[str, Any]:
    before = store.stored(i)
    index = store.index(i)
    place, stamp = store.stored(i), store.stamps[i]
    return {
        "shard": store.names[i],
        "path": str(store.paths[i]),
        "bytes": stamp.size if stamp else 0,
        "samples": len(index),
        "first": index.key(0),
        "last": index.key(-1),
        "members": [asdict(found) for found in members(index)],
        "index": "stored" if before else "made now" if place else "not stored",
        "index_path": str(place) if place else None,
        "problems": problems(index),
    }


def _print_report(report: dict[str, Any]) -> None:
    if "samples" in report:
        print(f"{printable(report['shard'])}: {report['samples']:,} samples in {report['bytes']:,} bytes")
        print(f"  keys     {printable(report['first'])} to {printable(report['last'])}")
        for found in report["members"]:
            sizes = f"{found['least']:,} to {found['most']:,}, median {found['median']:,}"
            print(
                f"  {printable(found['extension']):<8} {found['count']:,} members, {found['nbytes']:,} bytes ({sizes})"
            )
        where = f" in {report['index_path']}" if report["index_path"] else ""
        print(f"  index    {report['index']}{where}")
    else:
        print(f"{printable(report['shard'])}:")
    for problem in report["problems"]:
        print(f"  problem  {problem}")


def _cat(args: argparse.Namespace) -> int:
    fields = _fields(args)
    if args.raw:
        return _cat_raw(args, fields)
    with _chosen(args) as chosen:
        for shard, i in chosen:
            words = (f"{printable(name)}: {value}" for name, value in described(shard, i, fields).items())
            print("  ".join([printable(shard.index.key(i)), *words]))
    return 0


def _cat_raw(args: argparse.Namespace, fields: tuple[Field, ...]) -> int:
    if len(fields) != 1:
        raise UsageError(f"--raw writes one field, and --fields {args.fields or '(all)'} names {len(fields)}; name one")
    if sys.stdout.isatty():
        raise UsageError("--raw writes bytes, which may do anything to a terminal; send them to a file or a pipe")
    with _chosen(args) as chosen:
        for shard, i in chosen:
            try:
                _, place = fields[0].choose(shard.index.members(i))
            except MissingField as error:
                raise UsageError(f"sample {printable(shard.index.key(i))} of {shard.name} {error}") from None
            sys.stdout.buffer.write(shard.read(*place))
    sys.stdout.buffer.flush()
    return 0


def _extract(args: argparse.Namespace) -> int:
    fields = _fields(args)
    try:
        args.directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--directory {args.directory}: {error.strerror or error}") from error
    count = total = 0
    with _chosen(args) as chosen:
        for shard, i in chosen:
            total += extract(shard, i, args.directory, fields, force=args.force)
            count += 1
    print(f"{count:,} samples, {total:,} bytes, in {args.directory}")
    return 0


def _fields(args: argparse.Namespace) -> tuple[Field, ...]:
    return parse(args.fields) if args.fields is not None else ()


@contextmanager
def _chosen(args: argparse.Namespace) -> Iterator[Iterator[tuple[Shard, int]]]:
    """Open the shards, and yield the samples that the options choose."""
    if args.n is not None and args.n < 1:
        raise UsageError(f"-n {args.n}: ask for 1 sample at least")
    with ShardStore(expand(args.shards), cache=args.cache) as store:
        shards = (store.open(i) for i in range(len(store)))
        everything = ((shard, i) for shard in shards for i in samples(shard.index, args.where))
        yield islice(everything, args.n)
