"""The command ``feedmill``: finds the subcommand, and turns every error that feedmill raises into one line."""

import argparse
import errno
import os
import sys
from importlib import import_module
from importlib.metadata import version
from typing import Final

from feedmill_protocol.errors import FeedmillError, UsageError
from feedmill_protocol.printing import printable

__all__ = ["main"]

_COMMANDS: Final = {
    "serve": ("feedmill_server.cli", "serve batches of augmented samples from shards"),
    "draw": ("feedmill_server.draw", "make a small dataset to try things with"),
    "pack": ("feedmill_server.pack", "make shards of a folder of pictures"),
    "bake": ("feedmill.bake", "augment offline: write epochs of a pipeline as new shards"),
    "bench": ("feedmill.bench", "iterate over a server's batches and say how fast they come"),
    "monitor": ("feedmill.monitor", "watch how fast batches come, and from which servers"),
    "top": ("feedmill.top", "watch what servers do, several at a time"),
    "show": ("feedmill.show", "draw a batch as a contact sheet"),
    "stat": ("feedmill.stat", "describe the numbers in a stream, field by field"),
    "shards": ("feedmill_server.shards_cli", "look into shards: info, cat, extract"),
    "bridge": ("feedmill.bridge", "send a server's batches on to clients that speak tensorcom"),
    "keygen": ("feedmill.keys", "make keys for servers and trainers"),
    "demo": ("feedmill.demo", "make pictures, serve them from two servers, and train on them"),
}
"""Subcommands: the module that has its `add_arguments` and `run`, and what it does. A module is imported when its
command is used: a server needs no torch in its broker, a trainer no torchvision."""

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
"""What a disk says that has no room for what a command prints: for a figure every minute, say, of `monitor --json`."""


def main(argv: list[str] | None = None) -> int:
    """Run a command line; return the exit code: 0, or 2 after an error, or 130 after Ctrl-C.

    Where the reader of a pipe goes away, as ``head`` does, it is 141, as after SIGPIPE.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        args = _parser(argv[:1]).parse_args(argv)
        code = int(args.run(args))
        sys.stdout.flush()
    except FeedmillError as error:
        line = " ".join(str(error).split())  # what a user's code raises may have several
        print(f"feedmill: {printable(line)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at exit
        return 141
    except OSError as error:
        if error.errno not in _FULL:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"feedmill: the output cannot be written: {error.strerror}; make room", file=sys.stderr)
        return 2
    return code


def _parser(chosen: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="feedmill", description="Training batches as a service.")
    parser.add_argument("--version", action="version", version=f"feedmill {version('feedmill')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (module, summary) in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary.capitalize() + ".")
        if name in chosen:
            try:
                implementation = import_module(module)
            except ModuleNotFoundError as error:
                raise UsageError(f"'{name}' needs {error.name}; pip install 'feedmill[server]'") from None
            implementation.add_arguments(command)
            command.set_defaults(run=implementation.run)
    return parser
