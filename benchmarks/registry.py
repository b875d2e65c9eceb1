"""Who takes part: every contender, how it is started, and what it needs."""

from dataclasses import dataclass
from typing import Final

__all__ = ["CONTENDERS", "Contender"]


@dataclass(frozen=True, slots=True)
class Contender:
    """A module of this package, and what it is told.

    ``needs`` are the packages that must be importable where it runs; ``family`` is what ``--python`` calls that place.
    ``title`` is its row in tables, "" for one that is only part of other figures.
    """

    name: str
    module: str
    title: str = ""
    dtype: str = "float32"
    variant: str = ""
    family: str = "feedmill"
    needs: tuple[str, ...] = ("feedmill", "feedmill_server", "torchvision")
    competes: bool = True
    """Whether it makes batches for a trainer as the others do; else it is a bound, or a part."""
    seconds: float = 300.0
    """After so long it is stopped, and counts as failed."""


_TORCH: Final = ("torch", "torchvision", "webdataset")
_PIL: Final = "DataLoader + webdataset, Pillow + torchvision"
_V2: Final = "DataLoader + webdataset, torchvision.io + v2"

CONTENDERS: Final = (
    Contender("feedmill:float32", "contenders.ours", "**feedmill**"),
    Contender("multiwebloader:float32", "contenders.multiwebloader", "feedmill, `MultiWebLoader`"),
    Contender("torch-pil:float32", "contenders.torch_pil", _PIL, family="torch", needs=_TORCH),
    Contender("torch-v2:float32", "contenders.torch_v2", _V2, family="torch", needs=_TORCH),
    Contender("dali:float32", "contenders.dali_cpu", "DALI, CPU", family="dali", needs=("torch", "nvidia.dali")),
    Contender(
        "tensorcom:float32", "contenders.tensorcom_push", "tensorcom", family="tensorcom", needs=(*_TORCH, "tensorcom")
    ),
    Contender(
        "spdl:float32",
        "contenders.spdl_threads",
        "SPDL, torchvision's operations",
        family="spdl",
        needs=("torchvision", "spdl.io", "spdl.pipeline"),
    ),
    Contender("tf-service:float32", "contenders.tf_service", "tf.data service", family="tf", needs=("tensorflow",)),
    Contender("feedmill-exact:float32", "contenders.ours", "feedmill, `--exact`", variant="exact"),
    Contender("feedmill:uint8", "contenders.ours", "**feedmill**", "uint8"),
    Contender("torch-pil:uint8", "contenders.torch_pil", _PIL, "uint8", family="torch", needs=_TORCH),
    Contender("torch-v2:uint8", "contenders.torch_v2", _V2, "uint8", family="torch", needs=_TORCH),
    Contender(
        "spdl:uint8",
        "contenders.spdl_threads",
        "SPDL, torchvision's operations",
        "uint8",
        family="spdl",
        needs=("torchvision", "spdl.io", "spdl.pipeline"),
    ),
    Contender("dali:uint8", "contenders.dali_cpu", "DALI, CPU", "uint8", family="dali", needs=("torch", "nvidia.dali")),
    Contender("loop-decode", "contenders.loops", "region decode alone", "uint8", "decode", competes=False),
    Contender(
        "loop-all", "contenders.loops", "the same pipeline, a plain loop on each core", "uint8", "all", competes=False
    ),
    Contender("loop-one", "contenders.loops", "the same pipeline, one plain loop", "uint8", "one", competes=False),
    Contender(
        "feedmill-cached:uint8", "contenders.cached", "feedmill, from the server's cache", "uint8", competes=False
    ),
    Contender(
        "feedmill-cached-keys:uint8",
        "contenders.cached",
        "the same, encrypted (`--keys`)",
        "uint8",
        "keys",
        competes=False,
    ),
    Contender("raw-zmq", "contenders.raw_zmq", "bare pyzmq, the same frames", "uint8", competes=False),
    Contender("service-costs", "contenders.service_costs", competes=False),
    Contender("baked", "contenders.baked", competes=False),
    Contender("micro-images", "micro.images", competes=False),
    Contender("micro-wire", "micro.wire", competes=False),
    Contender("micro-plan", "micro.planning", competes=False),
)
