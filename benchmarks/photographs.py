"""Generated shards for those who have no photographs at hand.

The spectrum of a real photograph falls with about 1/f, and it has edges. So have these: noise of that spectrum, with
parts of other noise before it. Their size is that of ImageNet's, 110 KB at 468x401 on average, and so is the time that
they take to decode. They show nothing.
"""

import io
import sys
import tarfile
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["write"]

_SHARDS: Final = 10
_SAMPLES: Final = 100
_CLASSES: Final = 1000

_QUALITY: Final = 95
"""With `_GRAIN`, what makes 110 KB."""
_GRAIN: Final = 5.0
"""Levels of 255: what sensors add to every pixel."""
_PARTS: Final = 12

_Plane = npt.NDArray[np.float32]


def write(folder: Path) -> list[str]:
    """Return the paths of the generated shards in ``folder``, written now unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"photographs-{shard:06d}.tar" for shard in range(_SHARDS)]
    for shard, path in enumerate(paths):
        if not path.exists():
            print(f"drawing {path}", file=sys.stderr)
            unfinished = path.with_suffix(".tmp")
            _write_shard(unfinished, shard)
            unfinished.replace(path)
    return [str(path) for path in paths]


def _write_shard(path: Path, shard: int) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(shard * _SAMPLES, (shard + 1) * _SAMPLES):
            random = np.random.default_rng((2, number))
            jpeg = io.BytesIO()
            _draw(random).save(jpeg, "JPEG", quality=_QUALITY)
            for extension, data in (("jpg", jpeg.getvalue()), ("cls", b"%d" % random.integers(_CLASSES))):
                member = tarfile.TarInfo(f"{number:08d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _draw(random: np.random.Generator) -> Image.Image:
    long, short = 500, int(random.integers(280, 460))  # as most of ImageNet's
    width, height = (long, short) if random.random() < 0.75 else (short, long)
    picture = _noise(width, height, random)
    rows, columns = np.mgrid[:height, :width]
    other = _noise(width, height, random)
    for _ in range(_PARTS):
        y, x, a, b = (random.uniform(0, 1, 4) * (height, width, height / 3, width / 3) + (0, 0, 8, 8)).tolist()
        inside = ((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 < 1
        picture[inside] = 0.7 * other[inside] + random.uniform(0, 80, 3).astype(np.float32)
    picture += random.standard_normal((height, width, 1), np.float32) * _GRAIN
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def _noise(width: int, height: int, random: np.random.Generator) -> _Plane:
    """Return [height, width, 3] of levels around 128 whose spectrum falls as a photograph's does."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    falling = frequency ** -random.uniform(1.0, 1.5)
    grey, *tints = (
        np.fft.irfft2(np.fft.rfft2(random.standard_normal((height, width))) * falling, (height, width))
        for _ in range(3)
    )
    warm, cold = tints  # colours vary less than light does
    planes = np.stack([grey + 0.4 * warm, grey, grey + 0.4 * cold], axis=-1)
    return np.asarray(128 + 50 * planes / planes.std(), np.float32)
