"""feedmill's server: turns names of batches into tensors.

A pipeline file begins with ``from feedmill_server import Pipeline``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline import Pipeline

__all__ = ["Pipeline"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: a pipeline needs torch, and the broker, which is ready seconds earlier without, does not.
    if name == "Pipeline":
        from .pipeline import Pipeline  # noqa: PLC0415

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
