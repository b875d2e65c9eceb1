"""The ranks, as far as one process shows them; `tests/integration/test_ranks.py` has several."""

import pytest
import torch
from torch import distributed

from feedmill import ranks


def test_rank_and_world_size_are_those_of_torch_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is initialised; one process alone is everybody."""
    assert ranks.world() is None
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda: 3)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 8)
    assert ranks.world() == (3, 8)
    monkeypatch.setattr(distributed, "is_available", lambda: False)
    assert ranks.world() is None


@pytest.mark.parametrize(
    ("config", "ours", "device"),
    [
        ("cpu:gloo,cuda:gloo", "cuda:1", "cpu"),
        ("cuda:nccl", "cpu", "cuda"),
        ("cuda:nccl", "cuda:1", "cuda:1"),
        ("cpu:gloo,cuda:nccl", "cuda:1", "cpu"),
        ("xpu:xccl", "cpu", "xpu"),
    ],
)
def test_ranks_speak_on_a_device_that_their_backend_takes(
    monkeypatch: pytest.MonkeyPatch, config: str, ours: str, device: str
) -> None:
    """NCCL takes nothing from the CPU, and of two ranks not from one GPU."""
    monkeypatch.setattr(distributed, "get_backend_config", lambda: config)
    assert ranks._device(torch.device(ours)) == torch.device(device)
