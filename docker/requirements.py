"""Print what pyproject.toml requires, a line each: ``dependencies``, or those of an extra; for images."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
print(*(project | project["optional-dependencies"])[sys.argv[1]], sep="\n")
