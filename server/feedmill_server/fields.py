"""Fields: which members of a sample a stream is made of, in webloader's words.

``"ppm;png;jpg cls"`` asks for two fields: the first that exists of ppm, png and jpg; and cls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from feedmill_protocol import limits
from feedmill_protocol.errors import UsageError

__all__ = ["Field", "MissingField", "parse"]

Member = TypeVar("Member")


class MissingField(LookupError):
    """A sample has none of the extensions of a field."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field: ``name`` as it was written, and the ``extensions`` to look for, the best first."""

    name: str
    extensions: tuple[str, ...]

    def choose(self, members: Mapping[str, Member]) -> tuple[str, Member]:
        """Return the extension and the member that serve this field. Raises MissingField."""
        for extension in self.extensions:
            if extension in members:
                return extension, members[extension]
        there = [extension for extension in members if not extension.startswith("__")]
        raise MissingField(f"has no member {' or '.join(self.extensions)}, only {', '.join(there)}")


def parse(fields: str | Sequence[str]) -> tuple[Field, ...]:
    """Read ``"ppm;png;jpg cls"`` or ``["ppm;png;jpg", "cls"]``. Raises UsageError."""
    names = fields.split() if isinstance(fields, str) else list(fields)
    if not 1 <= len(names) <= limits.FIELDS:
        raise UsageError(f"fields={fields!r}: expected 1 to {limits.FIELDS} fields, like 'ppm;png;jpg cls'")
    parsed = tuple(Field(name, tuple(e.lower().lstrip(".") for e in name.split(";"))) for name in names)
    for field in parsed:
        if not all(field.extensions) or len(field.name.encode()) > limits.NAME_BYTES:
            raise UsageError(f"fields={fields!r}: {field.name!r} is not a list of extensions like 'ppm;png;jpg'")
    return parsed
