from feedmill_protocol.printing import printable


def test_what_a_terminal_would_obey_is_escaped() -> None:
    """Everything else stays, however long it is."""
    assert printable("a\x1b[2J\n\u202e\udcff") == "a\\x1b[2J\\n\\u202e\\udcff"
    assert printable("Grüße" * 100) == "Grüße" * 100
