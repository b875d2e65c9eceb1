"""Results as tables, in Markdown."""

from collections.abc import Iterator, Sequence
from statistics import median

from .figures import FIGURES, verdict
from .registry import CONTENDERS
from .rounds import Results

__all__ = ["contenders", "goals", "image", "stages", "whole"]


def contenders(results: Results) -> str:
    """Return the table of everybody who makes batches: rates, spread, cost."""
    rows = []
    for dtype in ("float32", "uint8"):
        found = []
        ours = results.values(f"feedmill:{dtype}", "img_s")
        for contender in CONTENDERS:
            rates = results.values(contender.name, "img_s")
            if contender.dtype != dtype or not contender.title or not rates:
                continue
            cost = median(results.values(contender.name, "cpu_s_per_1k"))
            pss = results.values(contender.name, "pss_mb")
            ratio = f"{median(ours) / median(rates):.2f}x" if ours and contender.competes else ""
            span = f"{min(rates):,.0f}-{max(rates):,.0f}; {len(rates)}"
            memory = f"{median(pss):,.0f}" if pss else ""
            row = (contender.title, dtype, f"{median(rates):,.0f} ({span})", f"{cost:.2f}", ratio, memory)
            found.append((median(rates), row))
        rows += [row for _, row in sorted(found, reverse=True)]
    head = ("", "delivers", "images/s (least-most; runs)", "CPU s per 1,000", "feedmill is", "memory, MiB")
    return _table(head, rows)


def goals(results: Results) -> str:
    """Return the table of what was to be reached, and was or was not."""
    rows = []
    for figure in FIGURES:
        value = figure.value(results)
        bounds = [figure.form.format(bound) if bound is not None else "" for bound in (figure.must, figure.aim)]
        sign = "≥ " if figure.at_least else "≤ "
        shown = "" if value is None else figure.form.format(value)
        rows.append((figure.title, sign + bounds[0], bounds[1] and sign + bounds[1], shown, verdict(figure, value)))
    return _table(("figure", "must", "aim", "measured", ""), rows)


def stages(results: Results) -> str:
    """Return the tables of the stages' own figures."""
    rows = []
    for contender in CONTENDERS:
        if not contender.module.startswith("micro."):
            continue
        for name in _names(results, contender.name):
            values = results.values(contender.name, name)
            stem, _, unit = name.rpartition("_")
            what = f"{contender.name.removeprefix('micro-')}: {stem.replace('_', ' ')}"
            rows.append((what, f"{median(values):,.4g} {_UNITS.get(unit, unit)}", f"{min(values):,.4g}"))
    return _table(("stage", "median", "best"), rows)


def image(results: Results) -> str:
    """Return the table of where an image's CPU time goes, from reading it to handing it out as float32."""
    found = {name: values for name in _names(results, "micro-images") if (values := _micro(results, name))}
    backend = next((name for name in ("turbo", "simplejpeg", "pillow") if f"decode_{name}_us" in found), "")
    steps = (
        ("read it from the shard", "read_us"),
        ("seed the generators", "seed_us"),
        (f"decode the region ({backend})", f"decode_{backend}_us"),
        ("resize it", "resize_us"),
        ("**all that a worker does for an image**", "sample_us"),
        ("to float and normalise, in the trainer", "finish_us"),
    )
    rows = [(what, f"{median(found[name]):,.0f} µs") for what, name in steps if name in found]
    whole = [(d, results.values(f"feedmill:{d}", "cpu_s_per_1k")) for d in ("uint8", "float32")]
    rows += [(f"**everything, all processes, {d}**", f"{1000 * median(v):,.0f} µs") for d, v in whole if v]
    return _table(("", "CPU time"), rows)


def _micro(results: Results, name: str) -> list[float]:
    return results.values("micro-images", name)


_UNITS = {"us": "µs", "gbs": "GB/s", "ratio": "x", "mb": "MB"}


def whole(results: Results) -> Iterator[str]:
    """Yield all tables, each under its heading, and what failed."""
    yield f"## Contenders\n\n{contenders(results)}"
    yield f"## Goals\n\n{goals(results)}"
    yield f"## An image\n\n{image(results)}"
    yield f"## Stages\n\n{stages(results)}"
    failed = [f"- {r['contender']}, round {r['round'] + 1}: {r['error']}" for r in results.runs if "error" in r]
    if failed:
        yield "## Failed\n\n" + "\n".join(failed)


def _names(results: Results, contender: str) -> list[str]:
    names = [name for run in results.runs if run["contender"] == contender for name in run.get("figures", ())]
    return list(dict.fromkeys(names))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
