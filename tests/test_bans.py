"""What `make check` bans from client, server and protocol: whatever would let data become code."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

DANGERS = {
    "import pickle": "TID251",
    "import _pickle": "TID251",
    "import os, marshal as m": "TID251",
    "from shelve import open": "TID251",
    "def f():\n    import cloudpickle": "TID251",
    "from dill import loads": "TID251",
    "import joblib": "TID251",
    "from multiprocessing.connection import Client": "TID251",
    "import torch.multiprocessing as mp": "TID251",
    "from torch import load": "TID251",
    "import torch as t\nt.load(f, weights_only=True)": "TID251",
    "import numpy as np\nnp.load(f)": "TID251",
    "import yaml\nyaml.load(f)": "TID251",
    "import runpy": "TID251",
    "eval(x)": "S307",
    "def f():\n    exec(x)": "S102",
    "from builtins import eval": "TID251",
    "import os\nos.system(x)": "TID251",
    "import os\nos.popen(x)": "TID251",
    "import subprocess\nsubprocess.run(x, shell=True)  # noqa: S603": "S602",
    "from subprocess import Popen\nPopen(x, shell=yes)": "S603",
    "from subprocess import getoutput": "TID251",
}

HARMLESS = "import json\nimport re\nre.compile(x)\njson.load(f)\nmodel.eval()"


@pytest.mark.skipif(not find_spec("ruff"), reason="ruff is not installed")
def test_whatever_would_let_data_become_code_is_banned(tmp_path: Path) -> None:
    """By the configuration of ruff, under whatever name it is imported."""
    for number, source in enumerate([*DANGERS, HARMLESS]):
        (tmp_path / f"{number:02d}.py").write_text(source)
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--config", str(ROOT / "pyproject.toml")]
    options = ["--select", "S,TID251", "--output-format", "json", str(tmp_path)]
    found = json.loads(subprocess.run([*command, *options], capture_output=True, check=False).stdout)
    for number, (source, code) in enumerate(DANGERS.items()):
        codes = {each["code"] for each in found if Path(each["filename"]).stem == f"{number:02d}"}
        assert code in codes, source
    assert not [each for each in found if Path(each["filename"]).stem == f"{len(DANGERS):02d}"]


def test_only_the_two_ends_of_a_handover_have_leave() -> None:
    """And one reader of arrays, which takes none that are pickled. What ruff cannot see is not there either."""
    allowed = []
    for path in sorted(path for package in ("client", "server", "protocol") for path in (ROOT / package).rglob("*.py")):
        source = path.read_text()
        allowed += [
            (path.name, line.strip())
            for line in source.splitlines()
            if re.search("noqa.*(TID251|S307|S102|S602)", line)
        ]
        assert not re.search(r"_pyobj|_serialized|__import__", source), path
    assert [name for name, _ in allowed] == ["private.py", "decode.py", "handover.py"]
    assert "allow_pickle=False" in allowed[1][1]
