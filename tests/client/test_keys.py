"""Keys: how they are made, read, and refused."""

import logging
import stat
from pathlib import Path

import pytest

from feedmill import keys
from feedmill.cli import main
from feedmill_protocol.errors import UsageError


def test_a_pair_for_servers_and_one_for_trainers_are_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody else can read the secret ones, and a trainer's keys are what the folder holds."""
    folder = tmp_path / "new" / "keys"
    assert main(["keygen", str(folder)]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    names = ["client.key", "client.key_secret", "server.key", "server.key_secret"]
    assert sorted(path.name for path in written) == names
    assert sorted(path.name for path in folder.iterdir()) == names  # and nothing else is left
    for path in written:
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if path.suffix == ".key_secret" else 0o644)
    ours = keys.load(folder)
    assert len({ours.public, ours.secret, ours.server}) == 3
    assert keys.load(folder / "client.key_secret") == ours
    assert repr(ours.secret) not in repr(ours)


def test_pairs_of_other_names_are_for_further_trainers(tmp_path: Path) -> None:
    """They know the same server."""
    keys.generate(tmp_path)
    keys.generate(tmp_path, ("alice",))
    alice = keys.load(tmp_path / "alice.key_secret")
    assert alice.server == keys.load(tmp_path).server
    assert alice.secret != keys.load(tmp_path).secret


def test_keys_are_not_overwritten(tmp_path: Path) -> None:
    """Not even one of a pair; and then none is made."""
    keys.generate(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match=r"client\.key is there already; keys are not overwritten"):
        keys.generate(tmp_path, ("bob", "client"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a/b", "x" * 65, "ü"])
def test_a_name_is_a_plain_word(tmp_path: Path, name: str) -> None:
    """It becomes the name of a file."""
    with pytest.raises(UsageError, match="expected letters, digits"):
        keys.generate(tmp_path, (name,))


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """The error names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"keys cannot be written to .*file: "):
        keys.generate(tmp_path / "file")


def test_keys_that_are_not_there_are_an_error(tmp_path: Path) -> None:
    """The error names the file that is missing, or holds no key, and says how to make one."""
    with pytest.raises(UsageError, match=r"nowhere cannot be read: no such file; 'feedmill keygen DIR' makes keys"):
        keys.load(tmp_path / "nowhere")
    keys.generate(tmp_path)
    with pytest.raises(UsageError, match=r"client\.key holds no secret key"):
        keys.load(tmp_path / "client.key")
    (tmp_path / "server.key").write_text('public-key = "short"\n')
    with pytest.raises(UsageError, match=r"server\.key holds no keys of 40 characters"):
        keys.load(tmp_path)
    for wrong in ("#" * 40, "\\" * 40, "ä" * 20):  # more than 32 bits in five characters; not Z85; not ASCII
        (tmp_path / "server.key").write_text(f'public-key = "{wrong}"\n')
        with pytest.raises(UsageError, match=r"server\.key holds no keys of 40 characters"):
            keys.load(tmp_path)
    (tmp_path / "server.key").write_text("nothing\n")
    with pytest.raises(UsageError, match=r"server\.key cannot be read: no key in it"):
        keys.load(tmp_path)


def test_a_secret_that_others_can_read_is_complained_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And used: a mounted secret may have whatever mode it has."""
    keys.generate(tmp_path)
    (tmp_path / "client.key_secret").chmod(0o644)
    with caplog.at_level(logging.WARNING, "feedmill"):
        keys.load(tmp_path)
    assert "can be read by others; chmod 600 it" in caplog.text
