"""Fused pipelines through real servers: what travels, what arrives, and what a server says of it."""

import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import feedmill
from feedmill_server.jpeg import BACKENDS
from integration.epochs import TIMEOUT, Reference, assert_same
from integration.fleet import PIPELINES, Data, Fleet
from integration.processes import Served, command, environment

Serve = Callable[..., Served]

STEPS = "RandomResizedCrop + RandomHorizontalFlip + the client finishes"

CUSTOM = """
import torch
from torchvision.transforms import v2
from feedmill_server import Pipeline

crop = [v2.RandomResizedCrop(32), v2.RandomHorizontalFlip()]
to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
FINISHED = Pipeline("jpg cls", transforms=[v2.Compose(crop + to_float), None])
BYTES = Pipeline("jpg cls", transforms=[v2.Compose([*crop, v2.PILToTensor()]), None])
JITTERED = Pipeline("jpg cls", transforms=[v2.Compose([*crop, v2.ColorJitter(0.4), *to_float]), None])
STRANGE = Pipeline("jpg cls", transforms=[v2.Compose([v2.Grayscale(3), *crop, *to_float]), None])
EXACT = Pipeline("jpg cls", transforms=[v2.Compose(crop + to_float), None], exact=True)
"""


@pytest.fixture
def custom(tmp_path: Path) -> Path:
    """Return a file of pipelines, as a user would write it."""
    path = tmp_path / "custom.py"
    path.write_text(CUSTOM)
    return path


def epoch(url: str, stream: str | None = None, dtype: torch.dtype | None = None) -> list[feedmill.Batch]:
    with feedmill.connect(url, stream, dtype=dtype, timeout=TIMEOUT) as feed:
        return list(feed.batches())


def check(folder: Path, *args: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``feedmill serve --check``."""
    return subprocess.run(
        command("serve", *args, "--check"),
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(folder, env),
        check=False,
    )


def fingerprint(out: str) -> str:
    (line,) = (line for line in out.splitlines() if line.startswith("fingerprint"))
    return line.split()[-1]


# What arrives.


def test_fused_and_exact_servers_send_the_same_pictures(fleet: Fleet) -> None:
    """The same samples, crops and flips; in channels_last memory, and at most one level apart where they are fused."""
    fused, exact = (epoch(fleet["two"], stream) for stream in ("pictures", "pictures-exact"))
    assert [batch.keys for batch in fused] == [batch.keys for batch in exact]
    apart = []
    for ours, theirs in zip(fused, exact, strict=True):
        assert ours.tensors[0].is_contiguous(memory_format=torch.channels_last)
        assert ours.tensors[0].dtype == theirs.tensors[0].dtype == torch.float32
        assert torch.equal(ours.tensors[1], theirs.tensors[1])
        std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        apart.append((ours.tensors[0] - theirs.tensors[0]).abs().mul(255 * std))
    assert max(float(levels.max()) for levels in apart) < 1.001
    assert 0 < sum(float(levels.mean()) for levels in apart) / len(apart) < 0.1  # it was fused, and that is all


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pictures_come_as_what_was_asked_for(fleet: Fleet, reference: Reference, dtype: torch.dtype) -> None:
    """They are finished in float32, and rounded once; labels stay integers."""
    for ours, theirs in zip(epoch(fleet["two"], "pictures", dtype), reference("pictures"), strict=True):
        assert torch.equal(ours.tensors[0], theirs.tensors[0].to(dtype))
        assert ours.tensors[0].dtype == dtype
        assert torch.equal(ours.tensors[1], theirs.tensors[1])


def test_bytes_can_be_finished_later(fleet: Fleet, reference: Reference) -> None:
    """A quarter of the memory until then, and the same pictures after."""
    with feedmill.connect(fleet["two"], "pictures", dtype=torch.uint8, timeout=TIMEOUT) as feed:
        for batch, expected in zip(feed.batches(), reference("pictures"), strict=True):
            assert batch.tensors[0].dtype == torch.uint8
            images, labels = feed.finish(batch.tensors)
            assert torch.equal(images, expected.tensors[0])
            assert torch.equal(labels, expected.tensors[1])
            (mirrored, _) = feed.finish((batch.tensors[0].flip(3), labels))
            assert torch.allclose(mirrored, expected.tensors[0].flip(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8])
def test_pictures_that_are_not_fused_come_as_they_are(fleet: Fleet, dtype: torch.dtype) -> None:
    """What a pipeline made is not made into something else; there is nothing left to finish."""
    with feedmill.connect(fleet["two"], "pictures-exact", dtype=dtype, timeout=TIMEOUT) as feed:
        batch = next(iter(feed))
        assert batch[0].dtype == torch.float32
        if dtype == torch.uint8:
            assert feed.finish(batch)[0] is batch[0]


def test_a_feed_that_finishes_does_not_finish_twice(fleet: Fleet) -> None:
    """That would be a silent mistake."""
    with feedmill.connect(fleet["two"], "pictures", timeout=TIMEOUT) as feed:
        batch = next(iter(feed))
        with pytest.raises(feedmill.UsageError, match="finished already"):
            feed.finish(batch)


def test_what_a_trainer_holds_does_not_change(fleet: Fleet, reference: Reference) -> None:
    """Memory is used again, but never while a tensor of it is held: here one of each batch."""
    with feedmill.connect(fleet["two"], "pictures", timeout=TIMEOUT, prefetch=2) as feed:
        held = []
        for _ in range(2):
            feed.set_epoch(0)
            held += [images[::7, :, 3:9] for images, _ in feed]
    expected = [batch.tensors[0][::7, :, 3:9] for batch in reference("pictures")]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(held, expected * 2, strict=True))


def test_bytes_are_all_that_travels(fleet: Fleet) -> None:
    """A quarter of what floats take."""
    sent = {}
    for stream in ("pictures", "pictures-exact"):
        with feedmill.connect(fleet["two"], stream, timeout=TIMEOUT) as feed:
            list(feed)
            sent[stream] = feed.stats().bytes
    assert sent["pictures"] == pytest.approx(sent["pictures-exact"] / 4, rel=0.01)


# What a server says.


def test_check_says_what_is_fused(custom: Path, data: Data, tmp_path: Path) -> None:
    """Steps, decoder, what the client does, and what runs as written."""
    expected = {
        "FINISHED": f"jpg: {STEPS.replace(' + the', ' + ToImage + the')} (pillow)",
        "BYTES": "jpg: RandomResizedCrop + RandomHorizontalFlip + PILToTensor (pillow)",
        "JITTERED": "jpg: RandomResizedCrop + RandomHorizontalFlip; then as written: ColorJitter + ToImage + ToDtype "
        "(pillow)",
        "STRANGE": "jpg: as written",
        "EXACT": "jpg: as written",
    }
    streams = "\n".join(
        f"[streams.{name}]\nshards = ['{data['pictures'].shards[0]}']\npipeline = '{custom}:{name}'"
        for name in expected
    )
    (tmp_path / "mill.toml").write_text(f"jpeg = 'pillow'\n{streams}\n")
    out = check(tmp_path, "--config", tmp_path / "mill.toml").stdout.splitlines()
    said = dict(zip(expected, (line for line in out if line.startswith("transforms")), strict=True))
    assert said == {name: f"transforms  = {line}" for name, line in expected.items()}
    assert "jpeg = 'pillow'" in out


def test_the_log_says_what_is_fused(serve: Serve, data: Data) -> None:
    """When the server starts."""
    served = serve(*data["pictures"].shards, "--preset", "imagenet-train", "--workers", "1", "--jpeg", "simplejpeg")
    assert f"stream train: ppm;png;jpg;jpeg: {STEPS} (simplejpeg)" in served.log


def test_exact_is_an_option_and_part_of_the_fingerprint(data: Data, tmp_path: Path) -> None:
    """A client cannot mix servers of both kinds."""
    args: tuple[str | Path, ...] = (*data["pictures"].shards, "--preset", "imagenet-train")
    fused, exact = check(tmp_path, *args).stdout, check(tmp_path, *args, "--exact").stdout
    assert f"transforms  = ppm;png;jpg;jpeg: {STEPS} (turbo)" in fused.splitlines()
    assert "transforms  = ppm;png;jpg;jpeg: as written" in exact.splitlines()
    assert "field       = ppm;png;jpg;jpeg: uint8 [3, 224, 224]" in fused.splitlines()
    assert "field       = ppm;png;jpg;jpeg: float32 [3, 224, 224]" in exact.splitlines()
    assert fingerprint(fused) != fingerprint(exact)


def test_torchs_kernels_are_part_of_the_fingerprint(data: Data, tmp_path: Path) -> None:
    """A processor without AVX2 rounds differently; AVX-512 is no other one than AVX2."""
    args: tuple[str | Path, ...] = (*data["pictures"].shards, "--preset", "imagenet-eval")
    avx512, avx2, none = (
        fingerprint(check(tmp_path, *args, ATEN_CPU_CAPABILITY=kernels).stdout)
        for kernels in ("avx512", "avx2", "default")
    )
    assert avx512 == avx2
    assert none != avx2 or platform.machine() != "x86_64"


def test_every_back_end_gives_the_same_pictures(serve: Serve, data: Data, reference: Reference, tmp_path: Path) -> None:
    """To the bit; and yet it is part of the fingerprint, since damaged files may tell them apart."""
    fingerprints = set()
    for name in BACKENDS:
        args: tuple[str | Path, ...] = (
            *data["pictures"].shards,
            "--preset",
            "imagenet-train",
            "--batch-size",
            "16",
            "--jpeg",
            name,
        )
        served = serve(*args, "--workers", "2")
        assert_same(epoch(served.url), reference("pictures"))
        fingerprints.add(fingerprint(check(tmp_path, *args).stdout))
    assert len(fingerprints) == len(BACKENDS)


def test_a_back_end_that_there_is_not_is_an_error(data: Data, tmp_path: Path) -> None:
    """In one line, with those that there are."""
    done = check(tmp_path, *data["pictures"].shards, "--preset", "imagenet-train", "--jpeg", "jpegli")
    assert done.returncode != 0
    assert "there is no JPEG decoder 'jpegli'; there are turbo, simplejpeg, pillow" in done.stderr
    assert "Traceback" not in done.stderr


def test_pipelines_of_every_kind_are_served(serve: Serve, custom: Path, data: Data) -> None:
    """Finished here, bytes, jittered there, as written: the pictures are of the shape that was written."""
    for name, dtype in {"FINISHED": torch.float32, "BYTES": torch.uint8, "JITTERED": torch.float32}.items():
        served = serve(*data["pictures"].shards, "--pipeline", f"{custom}:{name}", "--workers", "1")
        batch = epoch(served.url)[0]
        assert batch.tensors[0].shape == (64, 3, 32, 32)
        assert batch.tensors[0].dtype == dtype
        assert batch.tensors[0].float().std() > 0


def test_pipelines_without_pictures_say_nothing(data: Data, tmp_path: Path) -> None:
    """There is nothing to be fused."""
    out = check(tmp_path, *data["pictures"].shards, "--pipeline", f"{PIPELINES}:DRAWS").stdout
    assert "transforms" not in out
