import json

import numpy as np
import pytest
import torch

from feedmill.stat import Field, describe
from feedmill_protocol.tensors import ITEM_BYTES


def field(*tensors: torch.Tensor) -> Field:
    found = Field("x")
    for tensor in tensors:
        found.add(tensor)
    return found


def test_a_field_is_what_numpy_says_of_the_whole() -> None:
    """Over batches of different sizes."""
    batches = torch.rand(7, 3, 5, generator=torch.Generator().manual_seed(0)).split([4, 2, 1])
    report = field(*batches).as_json()
    whole = torch.cat(batches).double().numpy()
    assert report["dtypes"] == {"float32": 3}
    assert report["shapes"] == [[[4, 3, 5], 1], [[2, 3, 5], 1], [[1, 3, 5], 1]]
    assert (report["min"], report["max"], report["count"]) == (whole.min(), whole.max(), 105)
    assert (report["mean"], report["std"]) == (pytest.approx(whole.mean()), pytest.approx(whole.std()))
    start, width, counts = (report["histogram"][name] for name in ("start", "width", "counts"))
    assert np.histogram(whole, len(counts), (start, start + width * len(counts)))[0].tolist() == counts


@pytest.mark.parametrize("dtype", [dtype for dtype in ITEM_BYTES if not dtype.startswith("complex")])
def test_every_dtype_is_understood(dtype: str) -> None:
    """Whole numbers have whole bins."""
    report = field(torch.tensor([0, 1, 1, 1]).to(getattr(torch, dtype))).as_json()
    assert report["dtypes"] == {dtype: 1}
    assert (report["mean"], report["min"], report["max"]) == (0.75, 0, 1)
    assert report["std"] == pytest.approx(0.1875**0.5)
    assert report["histogram"]["width"] == (1 / 32 if "float" in dtype else 1)


def test_complex_numbers_are_told_by_their_absolute_values() -> None:
    """3 + 4i is 5."""
    assert field(torch.tensor([3 + 4j, 0])).as_json()["max"] == 5


def test_what_is_no_number_is_counted() -> None:
    """NaN and infinity spoil neither mean nor JSON."""
    report = field(torch.tensor([1.0, torch.nan, torch.inf, 3.0])).as_json()
    assert (report["nan"], report["infinite"], report["mean"]) == (1, 1, 2.0)
    assert "NaN" not in json.dumps(field(torch.tensor([torch.nan])).as_json())


def test_a_description_reads_well() -> None:
    """Dtype and shapes, range, moments, what is no number, and the histogram over its axis."""
    labels = torch.tensor([0.0, 1.0, 2.0, 3.0, 3.0, torch.nan])
    lines = describe([field(labels, labels), field(torch.zeros(0))]).splitlines()
    assert lines[:5] == [
        "x: float32 [6] in 2 batches",
        "  range  0 to 3",
        "  mean   1.8, std 1.16619, of 12 numbers",
        "  NaN  2 of 12 (16.67%)",
        "  " + " " * 48 + "█",
    ]
    assert lines[8] == "  0" + f"{'3.0625':>48}" + "  in bins of 0.0625"
    assert lines[-2:] == ["x: float32 [0]", "  no numbers"]
