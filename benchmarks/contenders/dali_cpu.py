"""NVIDIA DALI without a GPU: decodes the crop alone, in threads."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from benchmarks import contest


def _pipeline(given: contest.Entry) -> Any:
    @pipeline_def(batch_size=given.batch, num_threads=given.workers, device_id=None, prefetch_queue_depth=2)  # type: ignore[untyped-decorator]
    def define() -> Any:
        jpegs, labels = fn.readers.webdataset(
            paths=list(given.shards),
            ext=["jpg", "cls"],
            random_shuffle=True,
            initial_fill=300,
            missing_component_behavior="error",
        )
        images = fn.decoders.image_random_crop(
            jpegs, device="cpu", output_type=types.RGB, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        images = fn.resize(images, size=(contest.SIDE,) * 2, interp_type=types.INTERP_LINEAR, antialias=True)
        as_float = given.dtype == "float32"
        images = fn.crop_mirror_normalize(
            images,
            dtype=types.FLOAT if as_float else types.UINT8,
            mirror=fn.random.coin_flip(),
            mean=[255 * x for x in contest.MEAN] if as_float else [0.0] * 3,
            std=[255 * x for x in contest.STD] if as_float else [1.0] * 3,
        )
        return images, labels

    return define()


def main() -> None:
    """Run it."""
    given = contest.entry()
    torch.set_num_threads(1)
    pipeline = _pipeline(given)
    pipeline.build()
    contest.measure(_batches(pipeline), given)


def _batches(pipeline: Any) -> Iterator[tuple[Any, Any]]:
    while True:
        images, labels = pipeline.run()
        # A copy, as DALI's own iterator for PyTorch makes: the pipeline uses its memory again.
        numbers = [int(bytes(np.asarray(labels.at(i)))) for i in range(len(labels))]
        yield torch.from_numpy(images.as_array()), torch.tensor(numbers)


if __name__ == "__main__":
    main()
