from pathlib import Path

import pytest
import torch

from feedmill.show import _read_classes, exhibit
from feedmill.sources import Seen
from feedmill_protocol.errors import UsageError

PICTURES = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
LABELS = torch.tensor([0, 1, 2, 3])


def seen(*tensors: torch.Tensor, keys: tuple[str, ...] = ()) -> Seen:
    return Seen(tensors, tuple("0123")[: len(tensors)], keys, "tcp://a:1")


def test_pictures_are_captioned_by_their_labels() -> None:
    """As many as were asked for, with the names of their classes."""
    shown = exhibit(seen(PICTURES, LABELS), ["cat", "dog"], 3)
    assert shown.images.shape == (3, 3, 8, 8)
    assert shown.captions == ["cat", "dog", "2"]
    assert str(shown) == "3 pictures of 0 with 1"


def test_without_labels_keys_are_captions() -> None:
    """And without keys there are none."""
    assert exhibit(seen(PICTURES, keys=("a", "b", "c", "d")), [], 2).captions == ["a", "b"]
    assert exhibit(seen(PICTURES), [], 2).captions is None


def test_pairs_are_shown_side_by_side() -> None:
    """What is neither picture nor label is passed over."""
    shown = exhibit(seen(torch.zeros(4, 5, 5), PICTURES, PICTURES.float(), torch.zeros(())), [], 9)
    assert shown.images.shape == (4, 3, 8, 18)
    assert str(shown) == "4 pictures of 1 beside 2"


def test_a_batch_without_pictures_says_what_it_has() -> None:
    """And who could tell more."""
    with pytest.raises(
        UsageError, match=r"no pictures, only 0 torch.int64 \[4\]; see its numbers with 'feedmill stat'"
    ):
        exhibit(seen(LABELS), [], 4)


def test_the_names_of_classes_are_lines(tmp_path: Path) -> None:
    """As 'feedmill pack' writes them: a name may have what Unicode takes for the end of a line."""
    path = tmp_path / "classes.txt"
    path.write_bytes("cat\x0b\u2028\ndog\r\nowl".encode())
    assert _read_classes(path) == ["cat\x0b\u2028", "dog", "owl"]
