"""tf.data service: a dispatcher, worker processes, uncompressed batches. Decodes the crop alone; no antialiasing.

It reads TFRecords; those are made of the shards before the clock starts.
"""

import hashlib
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from tensorflow.data.experimental import service

from benchmarks import contest


def _records(given: contest.Entry) -> list[str]:
    """Return the shards as TFRecords, made now or by an earlier run."""
    folder = Path(given.cache) / f"tfrecords-{hashlib.sha256(repr(given.shards).encode()).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for shard in given.shards:
        path = folder / f"{Path(shard).name}.tfrecord"
        if not path.exists():
            unfinished = path.with_suffix(".tmp")
            with tf.io.TFRecordWriter(str(unfinished)) as writer:
                for jpeg, label in _samples(shard):
                    writer.write(_example(jpeg, label))
            unfinished.replace(path)
        made.append(str(path))
    return made


def _samples(shard: str) -> list[tuple[bytes, int]]:
    members: dict[str, dict[str, bytes]] = {}
    with tarfile.open(shard) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            if file := tar.extractfile(member):
                members.setdefault(key, {})[extension] = file.read()
    return [(sample["jpg"], int(sample["cls"])) for sample in members.values()]


def _example(jpeg: bytes, label: int) -> Any:
    features = {
        "jpeg": tf.train.Feature(bytes_list=tf.train.BytesList(value=[jpeg])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def _dataset(records: Sequence[str], given: contest.Entry) -> Any:
    mean, std = (255 * tf.constant(numbers) for numbers in (contest.MEAN, contest.STD))
    layout = {"jpeg": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}

    def make(record: Any) -> tuple[Any, Any]:
        sample = tf.io.parse_single_example(record, layout)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(sample["jpeg"]),
            bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            min_object_covered=0.1,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], 0)
        image = tf.image.decode_and_crop_jpeg(sample["jpeg"], window, channels=3)
        image = tf.image.resize(image, [contest.SIDE] * 2, method="bilinear")
        image = tf.image.random_flip_left_right(image)
        as_float = given.dtype == "float32"
        return (image - mean) / std if as_float else tf.saturate_cast(tf.round(image), tf.uint8), sample["label"]

    files = tf.data.Dataset.from_tensor_slices(list(records)).shuffle(len(records)).repeat()
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    return (
        files.interleave(tf.data.TFRecordDataset, cycle_length=2)
        .shuffle(300)
        .map(make, num_parallel_calls=1, deterministic=False)
        .batch(given.batch, drop_remainder=True)
        .prefetch(2)
        .with_options(options)
    )


def _play(role: str, dispatcher: str) -> None:
    """Be the dispatcher or a worker, until killed."""
    server = (
        service.DispatchServer(service.DispatcherConfig(port=0, protocol="grpc"))
        if role == "dispatcher"
        else service.WorkerServer(service.WorkerConfig(dispatcher_address=dispatcher, protocol="grpc"))
    )
    print("ready", getattr(server, "target", ""), flush=True)
    server.join()


def _start(role: str, dispatcher: str = "", core: int | None = None) -> tuple["subprocess.Popen[str]", str]:
    command = [sys.executable, "-m", "benchmarks.contenders.tf_service", "--role", role, dispatcher]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    if core is not None:  # tf.data's threads spin otherwise
        os.sched_setaffinity(process.pid, {core})
    said = process.stdout.readline().split() if process.stdout else []
    if said[:1] != ["ready"]:
        raise RuntimeError(f"the {role} of tf.data service did not start")
    return process, said[-1]


def main() -> None:
    """Run it."""
    if sys.argv[1] == "--role":
        _play(*sys.argv[2:4])
        return
    given = contest.entry()
    dispatcher, target = _start("dispatcher")
    cores = sorted(os.sched_getaffinity(0))
    address = target.removeprefix("grpc://")
    workers = [_start("worker", address, cores[n % len(cores)])[0] for n in range(given.workers)]
    try:
        distribute = service.distribute(
            processing_mode=service.ShardingPolicy.DYNAMIC, service=target, job_name="bench", compression=None
        )
        batches = _dataset(_records(given), given).apply(distribute)
        contest.measure(((images.numpy(), labels.numpy()) for images, labels in batches), given)
    finally:
        for process in (*workers, dispatcher):
            process.kill()
            process.wait()
    os._exit(0)  # its threads would not end


if __name__ == "__main__":
    main()
