"""Makes a folder of wheels for building the images where pip reaches PyPI but not PyTorch's own index.

``python tests/compose/wheelhouse.py DIR``, and then TEST_WHEELS=DIR for tests/compose.

pip must find a torch for CPUs (in PIP_FIND_LINKS, say). torchvision is PyPI's, whose operators are compiled for CUDA
and do not load beside such a torch. feedmill uses none of them, so they are left out, and only declared, as `import
torchvision` wants it. Such images are good for tests, and no others.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

TORCH, TORCHVISION = "torch==2.13.0", "torchvision==0.28.0"  # the Dockerfile's

DECLARED = """
_declared = torch.library.Library("torchvision", "DEF")
_declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def main(folder: Path) -> None:
    """Fill ``folder``, unless that was done before."""
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("torch-*.whl")):
        _download(TORCH, folder)
    if not list(folder.glob("torchvision-*.whl")):
        with tempfile.TemporaryDirectory() as temporary:
            _download(TORCHVISION, Path(temporary))
            [wheel] = Path(temporary).glob("*.whl")
            # With a build number, pip prefers it to PyPI's own.
            _without_operators(wheel, folder / wheel.name.replace("-cp", "-1-cp", 1))


def _download(requirement: str, folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
    subprocess.run(pip, check=True, stdout=sys.stderr)


def _without_operators(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w") as out:
        for member in source.infolist():
            content = source.read(member)
            if member.filename == "torchvision/extension.py":
                content += DECLARED.encode()
            if ".so" not in Path(member.filename).name:
                out.writestr(member, content)  # with its time: the same wheel each time, which layers are cached by


if __name__ == "__main__":
    main(Path(sys.argv[1]))
