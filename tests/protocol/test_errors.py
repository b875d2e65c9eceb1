"""The exception tree: where each error hangs, what it carries, what it says."""

import pickle

import pytest

from feedmill_protocol import errors

EXAMPLES = [
    errors.UsageError("batch_size=0: expected an integer in 1..65536"),
    errors.ProtocolError("GET.epoch: expected an integer"),
    errors.Damaged("header: its checksum is wrong"),
    errors.VersionMismatch(2, 1),
    errors.ServerUnavailable(30.0, {"tcp://cpu-0:7880": "silent"}),
    errors.StreamMismatch("no stream 'train'"),
    errors.DataError("bad"),
    errors.ShardError("train-000012.tar", "is truncated"),
    errors.SampleError("train-000012.tar", "0003127", "JPEG is truncated"),
    errors.PipelineError("no batch"),
]


def test_every_error_has_an_example_here() -> None:
    """The examples cover the whole tree but its root."""
    assert {type(e).__name__ for e in EXAMPLES} | {"FeedmillError"} == set(errors.__all__)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_every_error_hangs_in_the_tree(error: Exception) -> None:
    """One except clause catches everything that feedmill raises on purpose."""
    assert isinstance(error, errors.FeedmillError)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_every_error_survives_the_way_between_processes(error: Exception) -> None:
    """DataLoader workers and launchers pickle exceptions; data and sentence come through."""
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_every_error_can_be_made_anew_of_its_text(error: Exception) -> None:
    """As torch's DataLoader does with those of its workers, which would be a RuntimeError otherwise."""
    if not isinstance(error, errors.VersionMismatch):  # never reaches a worker: it comes before the first batch
        copy = type(error)(str(error))
        assert str(copy) == str(error)
        assert pickle.loads(pickle.dumps(copy)).args == copy.args  # noqa: S301 - our own bytes


@pytest.mark.parametrize(
    ("error", "builtin"),
    [(errors.UsageError, ValueError), (errors.ServerUnavailable, TimeoutError)],
)
def test_errors_are_the_builtins_that_a_caller_expects(error: type[Exception], builtin: type[Exception]) -> None:
    """A caller who knows only Python's own exceptions catches them too."""
    assert issubclass(error, builtin)


@pytest.mark.parametrize("error", [errors.ShardError, errors.SampleError, errors.PipelineError])
def test_bad_data_is_one_branch(error: type[Exception]) -> None:
    """Shard, sample and pipeline errors are caught together as DataError."""
    assert issubclass(error, errors.DataError)


def test_a_version_mismatch_names_both_versions_and_the_remedy() -> None:
    """Both versions are attributes, and the sentence says what to install where."""
    error = errors.VersionMismatch(2, 1)
    assert (error.theirs, error.ours) == (2, 1)
    assert "version 2 of feedmill's protocol, this side version 1" in str(error)
    assert "same feedmill release" in str(error)


def test_server_unavailable_says_what_is_known_of_every_server() -> None:
    """Each endpoint stands in the sentence with its state, and the timeout as it was given."""
    error = errors.ServerUnavailable(30.0, {"tcp://a:1": "silent", "tcp://b:1": "no connection"})
    assert "for 30 s (tcp://a:1: silent; tcp://b:1: no connection)" in str(error)


def test_server_unavailable_without_servers_says_so() -> None:
    """An empty list of servers is a name that did not resolve."""
    assert "the name resolves to no address" in str(errors.ServerUnavailable(1.5, {}))


def test_a_sample_error_names_shard_key_and_reason() -> None:
    """The sentence starts with where to look."""
    error = errors.SampleError("train-000012.tar", "0003127", "JPEG is truncated")
    assert str(error) == "shard train-000012.tar, sample 0003127: JPEG is truncated"


def test_a_shard_error_names_the_shard_and_the_reason() -> None:
    """The sentence starts with the shard."""
    assert str(errors.ShardError("a.tar", "is empty")) == "shard a.tar: is empty"
