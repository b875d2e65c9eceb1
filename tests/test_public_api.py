import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import feedmill

ROOT = Path(__file__).parents[1]
PACKAGES = ("protocol/feedmill_protocol", "client/feedmill", "server/feedmill_server")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
NAMES = [f"{path.relative_to(ROOT)}" for path in FILES]

FOREIGN = ("PIL", "torchvision", "rich", "prometheus_client", "feedmill_server")

WITHOUT_SERVER = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FOREIGN}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Blocker())
import feedmill
import feedmill.addresses, feedmill.bench, feedmill.cli, feedmill.connection, feedmill.feed, feedmill.tensors
import feedmill.monitor, feedmill.show, feedmill.stat
import feedmill.bridge, feedmill.tenbin, feedmill.tensorcom
try:
    feedmill.connect("nowhere")
except feedmill.UsageError as error:
    print(error)
from feedmill import *
assert connect is feedmill.connect and publish is feedmill.publish
for name in ("WebLoader", "FeedCollector"):
    try:
        getattr(feedmill, name)
    except feedmill.UsageError as error:
        print(error)
"""


def test_the_public_names_are_these() -> None:
    """What is added here is promised for good; what is missing breaks somebody."""
    assert feedmill.__all__ == [
        "Batch",
        "Connection",
        "DataError",
        "Feed",
        "FeedCollector",
        "FeedDataset",
        "FeedmillError",
        "MultiWebLoader",
        "PipelineError",
        "ProtocolError",
        "SampleError",
        "ServerUnavailable",
        "ShardError",
        "Stats",
        "StreamMismatch",
        "UsageError",
        "Verdict",
        "VersionMismatch",
        "WebLoader",
        "connect",
        "local",
        "publish",
        "tonumpy",
        "totorch",
    ]


def test_the_client_needs_nothing_of_the_server() -> None:
    """It imports and complains without Pillow, torchvision, rich, prometheus_client and the server."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_SERVER], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    feed, loader, collector = done.stdout.splitlines()
    assert feed.startswith("'nowhere': expected tcp://HOST:PORT")
    assert loader == "feedmill.WebLoader needs feedmill_server; pip install 'feedmill[server]'"
    assert collector == "feedmill.FeedCollector needs prometheus_client; pip install 'feedmill[server]'"


@pytest.mark.parametrize("modules", ["feedmill, feedmill.cli", "feedmill_server.cli, feedmill_server.server"])
def test_what_starts_at_once_does_not_import_torch(modules: str) -> None:
    """The command line starts at once; torch comes with the first feed. A server leaves it to its workers."""
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_module_says_what_it_is_and_what_it_offers(path: Path) -> None:
    """It has a docstring, and the names in its __all__ exist, sorted or not, once."""
    assert ast.get_docstring(ast.parse(path.read_text()))
    if path.name == "__main__.py":  # to import it is to run it
        return
    module = importlib.import_module(".".join(path.relative_to(path.parents[1]).with_suffix("").parts))
    offered = getattr(module, "__all__", [])
    assert len(offered) == len(set(offered))
    assert [name for name in offered if not hasattr(module, name)] == []


def test_public_functions_and_classes_are_documented() -> None:
    """Those of `import feedmill`, and what their users call."""
    for name in feedmill.__all__:
        thing = getattr(feedmill, name)
        assert inspect.getdoc(thing), name
        members = vars(thing).items() if inspect.isclass(thing) else []
        for member, value in members:
            if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                assert inspect.getdoc(value), f"{name}.{member}"


def test_only_the_fork_server_unpickles() -> None:
    """Neither the broker, which clients speak to, nor a client imports what unpacks pipelines."""
    importing = {path.name for path in FILES if "handover import" in path.read_text()}
    assert importing == {"forkserver.py"}
