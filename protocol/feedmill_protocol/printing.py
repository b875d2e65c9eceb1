"""Texts of others', as they may be printed: names out of a shard or from a peer must not move a terminal's cursor."""

__all__ = ["printable"]


def printable(text: str) -> str:
    """Return a text on one line, with escapes for whatever a terminal would obey or not show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
