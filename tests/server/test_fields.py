import pytest

from feedmill_protocol import limits
from feedmill_protocol.errors import UsageError
from feedmill_server.fields import Field, MissingField, parse


def test_fields_are_read_in_webloaders_words() -> None:
    """Spaces part fields, semicolons what serves one, the best first; a list does as well."""
    image, label = Field("ppm;png;jpg", ("ppm", "png", "jpg")), Field("cls", ("cls",))
    assert parse("ppm;png;jpg cls") == (image, label)
    assert parse(["ppm;png;jpg", "cls"]) == (image, label)
    assert parse("  cls\n") == (label,)


def test_case_and_a_leading_dot_do_not_matter() -> None:
    """A field keeps the name that it was given."""
    assert parse(".JPG;Seg.PNG") == (Field(".JPG;Seg.PNG", ("jpg", "seg.png")),)


def test_a_field_is_served_by_the_first_extension_that_is_there() -> None:
    """Order in the field counts, not order in the sample."""
    (field,) = parse("ppm;png;jpg")
    assert field.choose({"jpg": 1, "cls": 2, "png": 3}) == ("png", 3)
    assert field.choose({"jpg": 1}) == ("jpg", 1)


def test_a_sample_without_a_field_says_what_it_has() -> None:
    """The sentence names what was looked for and what is there."""
    (field,) = parse("png;jpg")
    with pytest.raises(MissingField, match=r"^has no member png or jpg, only cls, txt$"):
        field.choose({"cls": b"", "txt": b""})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("", r"^fields='': expected 1 to 32 fields, like 'ppm;png;jpg cls'$"),
        ([], r"^fields=\[\]: expected 1 to 32"),
        (["x"] * (limits.FIELDS + 1), "expected 1 to 32 fields"),
        ("jpg; cls", r"^fields='jpg; cls': 'jpg;' is not a list of extensions like 'ppm;png;jpg'$"),
        (";", "';' is not a list"),
        ("cls .", "'.' is not a list"),
        ([""], "'' is not a list"),
        ("x" * (limits.NAME_BYTES + 1), "is not a list of extensions"),
    ],
)
def test_what_names_no_fields_is_an_error_of_usage(given: str | list[str], says: str) -> None:
    """The error shows what was given."""
    with pytest.raises(UsageError, match=says):
        parse(given)
