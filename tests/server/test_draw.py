"""``feedmill draw``."""

from pathlib import Path

import pytest

from feedmill.cli import main


def test_draws_a_dataset_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is whole stays; what was lost is drawn again, the same."""
    command = ["draw", str(tmp_path / "new"), "--shards", "2", "--samples", "3"]
    assert main(command) == 0
    first, second = map(Path, capsys.readouterr().out.split())
    before = second.read_bytes()
    drawn = first.stat().st_mtime_ns
    assert main(command) == 0
    assert first.stat().st_mtime_ns == drawn
    second.unlink()
    assert main(command) == 0
    assert second.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "said"), [(["--shards", "0"], "shards=0"), (["--samples", "100001"], "samples=100001")]
)
def test_says_what_it_cannot_draw(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers have limits, and a folder may not be one."""
    assert main(["draw", str(tmp_path), *options]) == 2
    assert said in capsys.readouterr().err
    file = tmp_path / "file"
    file.touch()
    assert main(["draw", str(file / "x"), "--shards", "1", "--samples", "1"]) == 2
    assert f"cannot be written to {file}" in capsys.readouterr().err
