import pytest
import torch

from feedmill.pictures import captions, is_label, is_picture, levels, side_by_side

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.mark.parametrize("shape", [(2, 3, 8, 9), (2, 1, 8, 8), (2, 4, 8, 8), (2, 8, 9, 3), (2, 9, 8, 1), (2, 28, 28)])
def test_pictures_are_told_by_their_shape(shape: tuple[int, ...]) -> None:
    """With channels first, last or none; they are no labels."""
    assert is_picture(torch.zeros(shape))
    assert not is_label(torch.zeros(shape))
    assert levels(torch.zeros(shape, dtype=torch.uint8)).shape[:2] == (2, 3)


@pytest.mark.parametrize(
    "shape", [(2,), (2, 1), (2, 3), (2, 3, 4), (2, 3, 1, 1), (2, 7, 9, 9), (0, 3, 8, 8), (2, 3, 3, 3)]
)
def test_other_tensors_are_no_pictures(shape: tuple[int, ...]) -> None:
    """Too small, too many channels, or nothing there."""
    assert not is_picture(torch.zeros(shape))


def test_labels_are_one_for_each_sample_or_a_distribution() -> None:
    """Points and embeddings are none."""
    assert is_label(torch.tensor([3, 1]))
    assert is_label(torch.tensor([[3.5], [1.0]]))
    assert is_label(torch.tensor([[0.25, 0.75], [1.0, 0.0]], dtype=torch.bfloat16))
    assert not is_label(torch.tensor([[3, 1], [0, 0]]))
    assert not is_label(torch.tensor([[1.5, -0.5], [1.0, 0.0]]))
    assert not is_label(torch.zeros(()))


def test_bytes_stay_as_they_are() -> None:
    """uint8 is what pictures travel as; alpha is left out, grey stands for three."""
    images = torch.arange(2 * 4 * 8 * 8).reshape(2, 4, 8, 8).remainder(251).byte()
    assert torch.equal(levels(images), images[:, :3])
    assert torch.equal(levels(images[:, :1]), images[:, :1].expand(-1, 3, -1, -1))
    assert torch.equal(levels(images.permute(0, 2, 3, 1)), images[:, :3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_floats_from_0_to_1_are_not_stretched(dtype: torch.dtype) -> None:
    """A dark picture stays dark, and a slight overshoot does no harm."""
    images = torch.tensor([-0.01, 0.2, 0.4, 1.0])[:, None, None, None].expand(4, 3, 8, 8).to(dtype)
    found = levels(images)[:, 0, 0, 0].tolist()
    assert found == pytest.approx([0, 51, 102, 255], abs=1)


def test_a_normalisation_is_undone() -> None:
    """Where a batch has black and white, the colours that were normalised come back."""
    original = torch.rand(4, 3, 16, 16)
    original[0, :, 0, 0], original[3, :, 0, 0] = 0, 1
    normalised = (original - MEAN[:, None, None]) / STD[:, None, None]
    assert (levels(normalised).int() - (original * 255).round().int()).abs().max() <= 1


def test_whatever_floats_hold_becomes_a_picture() -> None:
    """NaN, infinity and a constant break nothing, and spoil no other pixel."""
    images = torch.zeros(1, 1, 8, 8)
    images[0, 0, 0] = torch.tensor([-4.0, 4.0, torch.nan, torch.inf, -torch.inf, 0.0, 0.0, 0.0])
    assert levels(images)[0, 0, 0].tolist() == [0, 255, 0, 255, 0, 128, 128, 128]
    assert levels(torch.full((1, 3, 8, 8), 7.0)).unique().tolist() == [0]
    assert levels(torch.full((1, 3, 8, 8), torch.nan)).unique().tolist() == [0]


def test_masks_are_stretched() -> None:
    """Classes of a segmentation, 0 to 20, can be told from each other."""
    mask = torch.arange(64).reshape(1, 8, 8).remainder(21)
    assert levels(mask).max() == 255


def test_pairs_stand_side_by_side() -> None:
    """Left and right, the lower one on white."""
    left, right = torch.zeros(2, 3, 8, 5, dtype=torch.uint8), torch.ones(2, 3, 4, 6, dtype=torch.uint8)
    both = side_by_side([left, right])
    assert both.shape == (2, 3, 8, 5 + 2 + 6)
    assert both[0, 0, 0].tolist() == [0] * 5 + [255] * 2 + [1] * 6
    assert both[0, 0, 7].tolist() == [0] * 5 + [255] * 8
    assert torch.equal(side_by_side([left]), left)


def test_captions_are_names_where_there_are_names() -> None:
    """Numbers beyond the list stay numbers; the likeliest class stands for a distribution; several are listed."""
    labels = [torch.tensor([1, 5]), torch.tensor([[0.1, 0.9], [0.6, 0.4]]), torch.tensor([[0.5], [2.25]])]
    assert captions(labels, ["cat", "dog"]) == ["dog, dog, 0.5", "5, cat, 2.25"]
    assert captions(labels[:1], []) == ["1", "5"]
    assert captions([torch.tensor([-1])], ["cat"]) == ["-1"]
