import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
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


# Calls that would let data become code.

MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {"torch.load", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen", "subprocess.getoutput"}


def dangers(source: str) -> Iterator[str]:
    """Yield what a file does that feedmill never does: ``LINE: WHAT``."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (f"{node.lineno}: import {a.name}" for a in names if a.name.partition(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module), level=0, names=names):
                if module.partition(".")[0] in MODULES:
                    yield f"{node.lineno}: import {module}"
                yield from (f"{node.lineno}: {module}.{a.name}" for a in names if f"{module}.{a.name}" in CALLS)
            case ast.Call(func=func, keywords=keywords):
                called = ast.unparse(func)
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in keywords}
                if called in BUILTINS or called in CALLS or called.removeprefix("builtins.") in BUILTINS:
                    yield f"{node.lineno}: {called}"
                if given.get("shell", "False") != "False":
                    yield f"{node.lineno}: {called} with a shell"
                if called in {"np.load", "numpy.load"} and given.get("allow_pickle") != "False":
                    yield f"{node.lineno}: {called} without allow_pickle=False"


PICKLES = {
    "client/feedmill/private.py": ["import cloudpickle"],
    "server/feedmill_server/handover.py": ["import pickle"],
}
"""A pipeline goes from a process to its own child; both modules say why that is no breach of the rule below."""


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_data_becomes_code(path: Path) -> None:
    """No pickle, eval, torch.load or shell in anything that faces the network or the data."""
    found = [danger.partition(": ")[2] for danger in dangers(path.read_text())]
    assert found == PICKLES.get(str(path.relative_to(ROOT)), [])


def test_only_the_fork_server_unpickles() -> None:
    """Neither the broker, which clients speak to, nor a client imports what unpacks pipelines."""
    importing = {path.name for path in FILES if "handover import" in path.read_text()}
    assert importing == {"forkserver.py"}


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import pickle", "1: import pickle"),
        ("import os, marshal as m", "1: import marshal"),
        ("\nfrom shelve import open", "2: import shelve"),
        ("from torch import load", "1: torch.load"),
        ("eval(x)", "1: eval"),
        ("def f():\n    exec(x)", "2: exec"),
        ("builtins.compile(x)", "1: builtins.compile"),
        ("torch.load(f, weights_only=True)", "1: torch.load"),
        ("yaml.load(f)", "1: yaml.load"),
        ("os.system(x)", "1: os.system"),
        ("subprocess.run(x, shell=True)", "1: subprocess.run with a shell"),
        ("Popen(x, shell=yes)", "1: Popen with a shell"),
        ("np.load(f)", "1: np.load without allow_pickle=False"),
        ("np.load(f, allow_pickle=True)", "1: np.load without allow_pickle=False"),
    ],
)
def test_dangers_are_seen(source: str, says: str) -> None:
    """The check itself finds what it should."""
    assert list(dangers(source)) == [says]


def test_harmless_calls_are_no_dangers() -> None:
    """Names that only look alike."""
    source = "import re\nre.compile(x)\njson.load(f)\nnp.load(f, allow_pickle=False)\nrun(x, shell=False)\nmodel.eval()"
    assert list(dangers(source)) == []
