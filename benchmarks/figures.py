"""What the figures of a benchmark must be, and what they are: medians over rounds, and ratios of medians."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Final

from .rounds import Results

__all__ = ["FIGURES", "Figure", "verdict"]

Value = Callable[[Results], float | None]


@dataclass(frozen=True, slots=True)
class Figure:
    """A row of the table: what it is called, how it is written, what it must be and what it should be.

    ``at_least`` says which way is good.
    """

    title: str
    value: Value
    form: str
    must: float
    aim: float | None = None
    at_least: bool = False

    def passes(self, value: float, bound: float) -> bool:
        """Tell whether a value keeps a bound."""
        return value >= bound if self.at_least else value <= bound


def verdict(figure: Figure, value: float | None) -> str:
    """Say in a word how a value does."""
    if value is None:
        return "not measured"
    if not figure.passes(value, figure.must):
        return "**misses**"
    return "aim" if figure.aim is not None and figure.passes(value, figure.aim) else "meets"


def _of(contender: str, key: str) -> Value:
    def value(results: Results) -> float | None:
        values = results.values(contender, key)
        return median(values) if values else None

    return value


def _ratio(above: Value, below: Value) -> Value:
    def value(results: Results) -> float | None:
        a, b = above(results), below(results)
        return a / b if a is not None and b else None

    return value


def _rate(contender: str) -> Value:
    return _of(contender, "img_s")


def _over(contender: str, other: str) -> Value:
    return _ratio(_rate(contender), _rate(other))


def _less_one(value: Value) -> Value:
    def less(results: Results) -> float | None:
        found = value(results)
        return None if found is None else found - 1

    return less


_CPU = "cpu_s_per_1k"

FIGURES: Final = (
    Figure(
        "float32, times DataLoader + webdataset + Pillow",
        *(_over("feedmill:float32", "torch-pil:float32"), "{:.2f}x", 3.2, 3.6, True),
    ),
    Figure("float32, times DALI CPU", _over("feedmill:float32", "dali:float32"), "{:.2f}x", 1.8, 2.0, at_least=True),
    Figure("uint8, times DALI CPU in uint8", _over("feedmill:uint8", "dali:uint8"), "{:.2f}x", 1.8, 2.0, at_least=True),
    Figure(
        "float32, times tensorcom", _over("feedmill:float32", "tensorcom:float32"), "{:.2f}x", 4, 4.5, at_least=True
    ),
    Figure(
        "float32, times tf.data service",
        *(_over("feedmill:float32", "tf-service:float32"), "{:.2f}x", 3.2, 3.6, True),
    ),
    Figure(
        "uint8, of region decode alone on the same cores",
        *(_over("feedmill:uint8", "loop-decode"), "{:.0%}", 0.65, 0.75, True),
    ),
    Figure("CPU seconds per 1,000 images, whole tree, float32", _of("feedmill:float32", _CPU), "{:.2f}", 1.45, 1.3),
    Figure(
        "CPU per image over a plain loop of the same pipeline",
        *(_less_one(_ratio(_of("feedmill:uint8", _CPU), _of("loop-one", _CPU))), "{:+.1%}", 0.10, 0.06),
    ),
    Figure(
        "the same, over plain loops that share the cores as its workers do",
        *(_less_one(_ratio(_of("feedmill:uint8", _CPU), _of("loop-all", _CPU))), "{:+.1%}", 0.10, 0.06),
    ),
    Figure(
        "`--exact`, times DataLoader + webdataset + Pillow",
        *(_over("feedmill-exact:float32", "torch-pil:float32"), "{:.2f}x", 1.15, 1.25, True),
    ),
    Figure(
        "from the server's cache, of bare pyzmq on the same frames",
        *(_over("feedmill-cached:uint8", "raw-zmq"), "{:.0%}", 0.80, 0.95, True),
    ),
    Figure(
        "images/s per core of `bake` → `serve`, times those of the originals: npy",
        *(_ratio(_of("baked", "originals_us"), _of("baked", "npy_us")), "{:.1f}x", 5, None, True),
    ),
    Figure("the same: ten", _ratio(_of("baked", "originals_us"), _of("baked", "ten_us")), "{:.1f}x", 5, at_least=True),
    Figure("server memory for each further worker", _of("service-costs", "worker_mb"), "{:.0f} MB", 120),
    Figure("client memory beyond `prefetch`", _of("service-costs", "client_batches"), "{:.1f} batches", 3),
    Figure("first batch after the server is ready", _of("service-costs", "first_batch_s"), "{:.2f} s", 0.5),
    Figure("server ready after its start, index cached", _of("service-costs", "ready_s"), "{:.2f} s", 4),
    Figure("`plan.batch(i)`, any i of 1.28 million samples", _of("micro-plan", "batch_ms"), "{:.2f} ms", 5),
    Figure("the same, the first of an epoch", _of("micro-plan", "batch_cold_ms"), "{:.1f} ms", 50),
    Figure("opening an epoch of a billion samples", _of("micro-plan", "billion_open_s"), "{:.2f} s", 2),
    Figure("memory for that", _of("micro-plan", "billion_mb"), "{:.0f} MB", 150),
    Figure("ledger and codec, client CPU for a batch", _of("micro-wire", "client_us"), "{:.0f} µs", 150),
    Figure("the same with 64 servers and 64 ranks, times that", _of("micro-wire", "client_64_ratio"), "{:.2f}x", 1.5),
)
"""The goals that the project set itself; `aim` is what would please."""
