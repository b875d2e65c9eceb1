"""ImageFolder trees for tests."""

import io
from collections.abc import Mapping
from pathlib import Path

from PIL import Image


def write_tree(root: Path, files: Mapping[str, bytes]) -> Path:
    """Write files, by their paths below ``root``, and return ``root``."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def picture(*colour: int, kind: str = "JPEG", size: tuple[int, int] = (48, 40)) -> bytes:
    """Return an encoded picture of one colour, (red, green, blue)."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()
