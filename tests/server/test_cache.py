from pathlib import Path

import pytest

from feedmill_server.cache import replacing, user_cache


def test_the_users_cache_follows_the_xdg_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG_CACHE_HOME counts where it is absolute, then the home folder; a user without either gets a folder in /tmp."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert user_cache() == Path("/caches/feedmill")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/someone")
    assert user_cache() == Path("/home/someone/.cache/feedmill")

    def homeless() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", homeless)
    assert user_cache().name.startswith("feedmill-")


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    """Until the block has ended well, the old file is there; when it fails, nothing else is."""
    target = tmp_path / "folder" / "file"
    with replacing(target) as file:
        file.write(b"old")

    def interrupted() -> None:
        with replacing(target) as file:
            file.write(b"new")
            assert target.read_bytes() == b"old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [(path, path.read_bytes()) for path in target.parent.iterdir()] == [(target, b"old")]
