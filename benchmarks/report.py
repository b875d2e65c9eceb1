"""``python -m benchmarks.report results.json docs/performance.md``: fills the document's tables from results.

What stands between ``<!-- NAME -->`` and ``<!-- /NAME -->`` is replaced, for each NAME of a table that is known here;
everything else is left alone. No figure in that document is written by hand.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from . import tables
from .rounds import Results

__all__ = ["fill"]


def _machine(results: Results) -> str:
    machine, settings = results.machine, results.settings
    return (
        f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, Python {machine['python']}; "
        f"{len(settings.shards)} shards in the page cache, {settings.workers} workers, batches of {settings.batch}, "
        f"runs of {settings.images:,} images, {max((r['round'] for r in results.runs), default=-1) + 1} interleaved "
        f"rounds, begun {machine['begun'][:10]}."
    )


_TABLES: Final[dict[str, Callable[[Results], str]]] = {
    "machine": _machine,
    "contenders": tables.contenders,
    "goals": tables.goals,
    "image": tables.image,
    "stages": tables.stages,
}


def fill(text: str, results: Results) -> str:
    """Return a document with its tables filled. Raises ValueError for one that has none."""
    found = 0
    for name, table in _TABLES.items():
        filled = f"<!-- {name} -->\n{table(results)}\n<!-- /{name} -->"
        pattern = rf"<!-- {name} -->.*?<!-- /{name} -->"
        text, count = re.subn(pattern, lambda _, filled=filled: filled, text, flags=re.DOTALL)  # type: ignore[misc]
        found += count
    if not found:
        raise ValueError(f"there is no place for a table; expected <!-- NAME -->, with one of {', '.join(_TABLES)}")
    return text


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("document", type=Path)
    args = parser.parse_args()
    document: Path = args.document
    document.write_text(fill(document.read_text(encoding="utf-8"), Results.load(args.results)), encoding="utf-8")


if __name__ == "__main__":
    main()
