"""The commands of the server package: ``feedmill serve``. This file prints; nothing below it does."""

import argparse
import logging
import os
import signal
import sys
from dataclasses import fields
from types import FrameType

from .config import PRESETS, SAMPLE_TIMEOUT, ServerConfig
from .hosting import hosted
from .progress import shown
from .server import Server

__all__ = ["add_arguments", "run"]

_log = logging.getLogger("feedmill_server")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``feedmill serve``; their defaults stand in `ServerConfig`."""
    parser.add_argument("shards", nargs="*", metavar="SHARDS", help="tar files; braces and globs are expanded")
    stream = parser.add_argument_group("the stream")
    stream.add_argument("--dir", metavar="DIR", help="instead of SHARDS: a folder of pictures, DIR/CLASS/picture.jpg")
    stream.add_argument("--stream", metavar="NAME", help="its name (default: train)")
    stream.add_argument("--preset", metavar="NAME", help=f"a pipeline that comes with feedmill: {' or '.join(PRESETS)}")
    stream.add_argument(
        "--pipeline",
        metavar="FILE.py:NAME",
        help="a pipeline of your own; or module:NAME, or the FILE.json of baked shards",
    )
    stream.add_argument("--batch-size", metavar="N", help="samples of a batch (default: the pipeline's, or 64)")
    stream.add_argument("--exact", action="store_true", default=None, help="run its transforms as written, slower")
    stream.add_argument(
        "--repeated", action="store_true", default=None, help="a shard that is given twice comes twice; else an error"
    )
    server = parser.add_argument_group("the server")
    server.add_argument(
        "--bind", metavar="URL", help="where to listen (default: tcp://127.0.0.1:7880; port * finds one)"
    )
    server.add_argument("--keys", metavar="DIR", help="folder with server.key_secret: encrypt, and know who connects")
    server.add_argument(
        "--authorized-clients", metavar="DIR", help="folder with the *.key of those who may connect (default: --keys)"
    )
    server.add_argument("--insecure", action="store_true", default=None, help="allow anybody beyond this machine")
    server.add_argument(
        "--http", metavar="PORT", help="show a page and metrics there: 9880, say, or ADDRESS:PORT (default: nowhere)"
    )
    server.add_argument("--workers", metavar="N", help="worker processes (default, and 0: one for each core)")
    server.add_argument("--memory", metavar="SIZE", help="shared memory for batches and their cache (default: 1GiB)")
    server.add_argument(
        "--cache", metavar="DIR", help="folder for indexes and inflated shards (default: .feedmill beside the shards)"
    )
    server.add_argument("--cache-bytes", metavar="SIZE", help="disk for inflated shards (default: 64GiB)")
    server.add_argument(
        "--jpeg", metavar="NAME", help="JPEG decoder: turbo, simplejpeg or pillow (default: the fastest)"
    )
    server.add_argument(
        "--sample-timeout",
        metavar="SECONDS",
        help=f"end a worker that is at one sample for so long (default: {SAMPLE_TIMEOUT:g})",
    )
    server.add_argument("--worker-memory", metavar="SIZE", help="what a worker may take of its own (default: no limit)")
    server.add_argument("--name", help="what clients know the server by (default: the host's name)")
    server.add_argument(
        "--config", metavar="FILE.toml", help="read all of this, and several [streams.NAME], from a file"
    )
    server.add_argument("--check", action="store_true", help="print the configuration and the catalog, and exit")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C. Raises FeedmillError for what cannot be served."""
    stream = {
        "name": args.stream,
        "shards": args.shards or None,
        "dir": args.dir,
        "preset": args.preset,
        "pipeline": args.pipeline,
        "batch_size": args.batch_size,
        "exact": args.exact,
    }
    config = ServerConfig.merge(vars(args), {k: v for k, v in stream.items() if v is not None}, os.environ)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    with shown("indexing") as progress, hosted(config, progress) as server:
        if not args.check:
            _handle_signals(server)
            if page := server.show():
                _log.info("page and metrics at %s", page)
        server.prepare()
        if args.check:
            _print_check(config, server)
            return 0
        endpoint = server.bind()
        _announce(server, endpoint)
        server.run()
    return 0


def _handle_signals(server: Server) -> None:
    def first(_number: int, _frame: FrameType | None) -> None:
        for again in (signal.SIGINT, signal.SIGTERM):
            signal.signal(again, _exit_at_once)
        if not server.serving:  # importing or indexing, which may take long, and nobody has been promised anything
            raise SystemExit(0)
        server.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, first)


def _exit_at_once(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)


def _announce(server: Server, endpoint: str) -> None:
    for served in server.served:
        stream = served.stream
        _log.info(
            "stream %s: %s samples in %d shards, batches of %d, %s",
            stream.name,
            f"{int(stream.counts.sum()):,}",
            len(stream.shards),
            stream.batch_size,
            ", ".join(f"{f.name} {f.dtype}{list(f.shape)}" for f in stream.fields),
        )
        for line in served.fusion:
            _log.info("stream %s: %s", stream.name, line)
    _log.info("serving at %s with %d workers", endpoint, server.config.workers)
    print(f"ready {endpoint}", flush=True)


def _print_check(config: ServerConfig, server: Server) -> None:
    for option in fields(config):
        if option.name != "streams":
            print(f"{option.name} = {getattr(config, option.name)!r}")
    for served in server.served:
        stream = served.stream
        print(f"\n[streams.{stream.name}]")
        print(f"pipeline    = {served.source}")
        print(f"batch_size  = {stream.batch_size}")
        for field in stream.fields:
            print(f"field       = {field.name}: {field.dtype} {list(field.shape)}")
        for line in served.fusion:
            print(f"transforms  = {line}")
        print(f"samples     = {int(stream.counts.sum()):,}")
        print(f"members     = {', '.join(f'{n:,} {e}' for e, n in served.extensions.items())}")
        print(f"catalog     = {stream.catalog}")
        print(f"fingerprint = {stream.fingerprint}")
        for shard, count in zip(stream.shards, stream.counts.tolist(), strict=True):
            print(f"  {count:>9,}  {shard}")
