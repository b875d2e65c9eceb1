"""An epoch: every sample once, and the same bits whoever makes them."""

import threading
from itertools import chain

import pytest
import torch

import feedmill
from feedmill_protocol.plan import Last
from integration.epochs import TIMEOUT, Reference, assert_same, keys
from integration.fleet import Data, Dataset, Fleet


@pytest.fixture(params=["pictures", "imagenet"])
def dataset(request: pytest.FixtureRequest, data: Data) -> Dataset:
    return data[request.param]


@pytest.fixture(params=["two", "ipc"])
def url(request: pytest.FixtureRequest, fleet: Fleet) -> str:
    return fleet[request.param]


def test_an_epoch_has_every_sample_once_in_batches_of_the_size_that_was_asked_for(
    dataset: Dataset, reference: Reference
) -> None:
    """Counts, keys, shapes and dtypes are those of the shards."""
    batches = reference(dataset.stream)
    sizes = [len(batch.keys) for batch in batches]
    assert len(batches) == len(dataset)
    assert sizes[:-1] == [dataset.batch_size] * (len(dataset) - 1)
    assert sizes[-1] == dataset.samples % dataset.batch_size
    assert len(set(keys(batches))) == sum(sizes) == dataset.samples
    for batch, size in zip(batches, sizes, strict=True):
        images, labels = batch.tensors
        assert (images.shape, images.dtype) == ((size, 3, 224, 224), torch.float32)
        assert (labels.shape, labels.dtype) == ((size,), torch.int64)
        assert (batch.epoch, batch.missing, batch.skipped) == (0, 0, ())


def test_the_real_shards_make_eight_batches_of_which_the_last_has_52(data: Data, fleet: Fleet) -> None:
    """The numbers of five ImageNet shards are known beforehand."""
    dataset = data["imagenet"]
    with feedmill.connect(fleet["one"], dataset.stream, timeout=TIMEOUT) as feed:
        assert len(feed) == 8
        assert feed.samples == 500
        assert [images.shape[0] for images, _ in feed] == [64] * 7 + [52]


@pytest.mark.parametrize(
    ("servers", "order"),
    [
        (("four",), "plan"),
        (("one", "two", "four"), "plan"),
        (("one", "two", "four"), "arrival"),
        (("ipc",), "plan"),
        (("two", "ipc"), "arrival"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_an_epoch_is_the_same_in_every_bit_whoever_makes_it(
    dataset: Dataset, fleet: Fleet, reference: Reference, servers: tuple[str, ...], order: str
) -> None:
    """One worker or four, one server or three, tcp or ipc, in order or as they come: the tensors are the same."""
    expected = reference(dataset.stream)
    urls = [fleet[name] for name in servers]
    with feedmill.connect(urls, dataset.stream, order=order, timeout=TIMEOUT) as feed:  # type: ignore[arg-type]
        batches = list(feed.batches())
    assert_same(batches, expected)
    if order == "plan":
        assert [batch.index for batch in batches] == list(range(len(dataset)))
    assert {batch.server for batch in batches} <= set(urls)


def test_an_epoch_begun_again_out_of_order_is_whole(data: Data, fleet: Fleet, reference: Reference) -> None:
    """Whatever came first of an iteration that was left, the next one of the same epoch has every batch."""
    dataset = data["pictures"]
    with feedmill.connect(fleet["two"], dataset.stream, order="arrival", prefetch=3, timeout=TIMEOUT) as feed:
        for _ in range(4):
            feed.set_epoch(0)
            next(feed.batches())
        feed.set_epoch(0)
        assert_same(list(feed.batches()), reference(dataset.stream))


def test_an_iteration_in_another_thread_ends_when_a_new_one_begins(data: Data, fleet: Fleet) -> None:
    """Two threads cannot share an epoch; the one whose iteration is over is told so, and does not wait for ever."""
    dataset = data["slow"]
    ends: list[str] = []
    begun = threading.Event()
    with feedmill.connect(fleet["one"], dataset.stream, seed=77, prefetch=1, timeout=TIMEOUT) as feed:

        def iterate() -> None:
            try:
                for _ in feed.batches():
                    begun.set()
            except feedmill.UsageError as error:
                ends.append(str(error))

        thread = threading.Thread(target=iterate)
        thread.start()
        assert begun.wait(TIMEOUT)
        feed.set_epoch(5)
        list(feed.batches())
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    (end,) = ends
    assert end.startswith("this iteration is over")


def test_every_server_of_three_takes_part(data: Data, fleet: Fleet) -> None:
    """Several servers are used, not held in reserve."""
    dataset = data["slow"]
    urls = [fleet[name] for name in ("one", "two", "four")]
    with feedmill.connect(urls, dataset.stream, seed=3, timeout=TIMEOUT) as feed:
        batches = [*feed.batches(), *feed.batches()]  # the first server to answer may get all of the first requests
    assert {batch.server for batch in batches} == set(urls)


def test_two_ranks_share_an_epoch(dataset: Dataset, url: str) -> None:
    """Ranks have as many steps, no sample in common, and together all of them."""
    ranks = []
    for rank in range(2):
        with feedmill.connect(url, dataset.stream, rank=rank, world_size=2, timeout=TIMEOUT) as feed:
            ranks.append(list(feed.batches()))
            assert len(feed) == len(ranks[-1])
    first, second = ranks
    assert len(first) == len(second)
    assert set(keys(first)).isdisjoint(keys(second))
    assert len(keys(first) + keys(second)) == len(set(keys(first) + keys(second))) == dataset.samples
    assert [b.index for b in chain.from_iterable(zip(first, second, strict=True))] == list(range(2 * len(first)))


def test_two_ranks_together_make_the_batches_that_one_makes(data: Data, fleet: Fleet, reference: Reference) -> None:
    """What a batch is does not depend on how many trainers there are, as far as batches are whole."""
    dataset = data["pictures"]
    expected = {batch.index: batch for batch in reference(dataset.stream)}
    whole = dataset.samples // (2 * dataset.batch_size) * 2
    for rank in range(2):
        with feedmill.connect(fleet["two"], dataset.stream, rank=rank, world_size=2, timeout=TIMEOUT) as feed:
            found = [batch for batch in feed.batches() if batch.index < whole]
        assert_same(found, [expected[index] for index in range(rank, whole, 2)])


def test_epochs_differ_and_the_same_epoch_repeats(dataset: Dataset, fleet: Fleet, reference: Reference) -> None:
    """A second epoch has another order and other crops; `set_epoch` brings back any of them."""
    first = reference(dataset.stream)
    with feedmill.connect(fleet["two"], dataset.stream, timeout=TIMEOUT) as feed:
        feed.set_epoch(1)
        second = list(feed.batches())
        feed.set_epoch(0)
        again = list(feed.batches())
        assert next(feed.batches()).epoch == 1, "an iteration goes on from the epoch that was set"
    assert [batch.epoch for batch in second] == [1] * len(second)
    assert keys(first) != keys(second)
    assert set(keys(first)) == set(keys(second))
    assert_crops_differ(first, second)
    assert_same(again, first)


def test_another_seed_makes_another_epoch(dataset: Dataset, fleet: Fleet, reference: Reference) -> None:
    """A seed decides order and augmentation both."""
    first = reference(dataset.stream)
    with feedmill.connect(fleet["two"], dataset.stream, seed=1, timeout=TIMEOUT) as feed:
        other = list(feed.batches())
    assert keys(first) != keys(other)
    assert set(keys(first)) == set(keys(other))
    assert_crops_differ(first, other)


@pytest.mark.parametrize(
    ("last", "sizes"), [("keep", [16] * 7 + [8]), ("drop", [16] * 7), ("pad", [16] * 8)], ids=["keep", "drop", "pad"]
)
def test_the_last_batch_is_kept_dropped_or_filled_up(fleet: Fleet, last: Last, sizes: list[int]) -> None:
    """`last` decides about what does not fill a batch, and `len` knows it."""
    with feedmill.connect(fleet["two"], "pictures", last=last, timeout=TIMEOUT) as feed:
        assert len(feed) == len(sizes)
        assert [len(batch.keys) for batch in feed.batches()] == sizes


def test_without_shuffling_samples_come_in_the_order_of_the_shards(fleet: Fleet) -> None:
    """`shuffle=False` is the order of the catalog."""
    with feedmill.connect(fleet["two"], "pictures-eval", shuffle=False, timeout=TIMEOUT) as feed:
        assert keys(list(feed.batches())) == [f"{n:06d}" for n in range(120)]


def test_a_trainer_may_ask_for_other_batches_than_the_server_proposes(fleet: Fleet, reference: Reference) -> None:
    """`batch_size` is cut from the same sequence of samples, and a sample's pixels do not depend on its batch."""
    with feedmill.connect(fleet["two"], "pictures", batch_size=50, timeout=TIMEOUT) as feed:
        batches = list(feed.batches())
    expected = reference("pictures")
    assert [len(batch.keys) for batch in batches] == [50, 50, 20]
    assert keys(batches) == keys(expected)
    for field in range(2):
        assert torch.equal(
            torch.cat([batch.tensors[field] for batch in batches]),
            torch.cat([batch.tensors[field] for batch in expected]),
        )


@pytest.mark.parametrize("stream", ["colours", "sample"])
def test_a_gzip_shard_of_pngs_works_with_a_pipeline_of_ones_own(data: Data, reference: Reference, stream: str) -> None:
    """Fields "png cls" of a .tgz, through a file that the user wrote."""
    dataset = data[stream]
    batches = reference(stream)
    assert len(set(keys(batches))) == dataset.samples == 90
    assert [tuple(batch.tensors[0].shape) for batch in batches] == [(20, 3, 32, 32)] * 4 + [(10, 3, 32, 32)]
    assert all(batch.tensors[1].dtype == torch.int64 for batch in batches)


def test_colours_arrive_with_their_labels(reference: Reference) -> None:
    """What belongs together stays together."""
    for batch in reference("colours"):
        images, labels = batch.tensors
        assert batch.keys == [str(label) for label in labels.tolist()]
        assert torch.equal(torch.round(images[:, 0, 16, 16] * 255).long(), labels), "red is the label"


def test_two_trainers_at_once_get_the_same_epoch(fleet: Fleet, reference: Reference) -> None:
    """Feeds in one process do not disturb each other, and equal names may share their work."""
    with (
        feedmill.connect(fleet["two"], "slow", timeout=TIMEOUT) as one,
        feedmill.connect(fleet["two"], "slow", timeout=TIMEOUT) as other,
    ):
        pairs = list(zip(one.batches(), other.batches(), strict=True))
    for side in zip(*pairs, strict=True):
        assert_same(list(side), reference("slow"))


def assert_crops_differ(first: list[feedmill.Batch], second: list[feedmill.Batch]) -> None:
    """Assert that samples were augmented in another way: the pixels of most keys differ."""
    ours, theirs = (
        {key: image.sum().item() for batch in batches for key, image in zip(batch.keys, batch.tensors[0], strict=True)}
        for batches in (first, second)
    )
    assert sum(ours[key] != theirs[key] for key in ours) > 0.9 * len(ours)
