"""Ranks of torch.distributed: they share an epoch, or none of them begins one."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import feedmill
from integration.epochs import TIMEOUT, Reference, keys
from integration.fakes import FakeServer, honest, silence
from integration.fleet import Fleet
from integration.trainers import trainer

RANK = """
import json, sys, warnings, feedmill
warnings.simplefilter("ignore")
from torch import distributed
where, rank, world_size, url, arguments = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
distributed.init_process_group("gloo", init_method=f"file://{where}/group", rank=rank, world_size=world_size)
try:
    with feedmill.connect(url, **json.loads(arguments)) as feed:
        print(json.dumps([repr(feed), len(feed), [batch.keys for batch in feed.batches()]]))
except feedmill.FeedmillError as error:
    print(json.dumps([type(error).__name__, str(error)]))
distributed.destroy_process_group()
"""


def run(folder: Path, url: str | list[str], arguments: list[dict[str, Any]]) -> list[Any]:
    """Connect on as many ranks as there are arguments; return what each has to say."""
    urls = [url] * len(arguments) if isinstance(url, str) else url
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                trainer(folder, RANK, str(folder), str(rank), str(len(arguments)), urls[rank], json.dumps(given))
            )[0]
            for rank, given in enumerate(arguments)
        ]
        outputs = [process.communicate(timeout=60) for process in processes]
    for output, errors in outputs:
        assert output, errors
    return [json.loads(output) for output, _ in outputs]


@pytest.mark.parametrize("last", ["keep", "drop", "pad"])
def test_ranks_that_agree_share_an_epoch(tmp_path: Path, fleet: Fleet, reference: Reference, last: str) -> None:
    """Rank and world size are torch.distributed's; steps are as many on both."""
    first, second = run(tmp_path, fleet["four"], [{"stream": "slow", "last": last}] * 2)
    assert [first[0].partition(", rank ")[2], second[0].partition(", rank ")[2]] == ["0 of 2>", "1 of 2>"]
    assert first[1] == second[1] == len(first[2]) == len(second[2]) == {"keep": 7, "drop": 6, "pad": 7}[last]
    found = [key for pair in zip(first[2], second[2], strict=True) for batch in pair for key in batch]
    expected = keys(reference("slow"))
    assert found[:96] == expected[:96]
    assert len(found) == {"keep": 100, "drop": 96, "pad": 112}[last]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"seed": 1}, "rank 1 has seed=1 (rank 0: 0); all ranks must connect"),
        ({"window": 1, "last": "pad"}, "rank 1 has window=1 (rank 0: 2), last='pad' (rank 0: 'keep')"),
    ],
)
def test_ranks_with_other_arguments_stop_all_of_them(tmp_path: Path, given: dict[str, Any], says: str) -> None:
    """Before the first batch, every one, with the same words."""
    with FakeServer(honest) as fake:
        found = run(tmp_path, fake.url, [{}, given])
        assert found[0] == found[1]
        assert found[0][0] == "StreamMismatch"
        assert says in found[0][1]
        assert not fake.gets


def test_ranks_with_other_servers_stop_all_of_them(tmp_path: Path, fleet: Fleet) -> None:
    """The shards are not the same."""
    with FakeServer(honest) as fake:
        found = run(tmp_path, [fake.url, fleet["four"]], [{"stream": "train"}, {"stream": "slow"}])
    assert found[0] == found[1]
    assert "rank 1 has stream='slow' (rank 0: 'train'), catalog='" in found[0][1]


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"timeout": 1.0}, "ServerUnavailable", "no server made progress for 1 s"),
        ({"order": "random"}, "UsageError", "order='random': expected 'plan' or 'arrival'"),
        ({"rank": 1}, "UsageError", "rank=1, world_size=None: give both or neither"),
    ],
)
def test_a_rank_that_cannot_connect_is_not_waited_for(
    tmp_path: Path, given: dict[str, Any], error: str, says: str
) -> None:
    """It says so to the others, who stop as well."""
    with FakeServer(honest) as fake, FakeServer(silence) as mute:
        well, ill = run(tmp_path, [fake.url, mute.url], [{}, given])
    assert ill[0] == error
    assert says in ill[1]
    assert well[0] == "StreamMismatch"
    assert well[1].startswith(f"rank 1 could not open its feed: {says}")


def test_a_launcher_without_torch_distributed_makes_a_warning(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rank would get every batch, and train as if there were one."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.warns(UserWarning, match=r"RANK=1 and WORLD_SIZE=2 are set, but torch\.distributed is not") as caught:
        feedmill.connect(fleet["four"], "slow", timeout=TIMEOUT).close()
    assert [warning.filename for warning in caught] == [__file__]
    with feedmill.connect(fleet["four"], "slow", rank=1, world_size=2, timeout=TIMEOUT):
        pass  # no warning, which would be an error here
    monkeypatch.setenv("WORLD_SIZE", "1")
    feedmill.connect(fleet["four"], "slow", timeout=TIMEOUT).close()
