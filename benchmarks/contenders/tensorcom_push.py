"""tensorcom: server processes with the pipeline of `torch_pil` push batches over ZeroMQ, the consumer pulls."""

import multiprocessing
import os
import socket

import numpy as np
from tensorcom import Connection

from benchmarks import contest

from .torch_pil import dataset, one_thread


def _serve(number: int, port: int, given: contest.Entry) -> None:
    one_thread()
    connection = Connection(f"zpush://127.0.0.1:{port}")
    # As webdataset deals shards to workers.
    for images, labels in dataset(contest.epochs(given.shards)[number :: given.workers], given):
        connection.send([images.numpy(), np.asarray(labels, "int32")])  # it refuses int64


def main() -> None:
    """Run it."""
    given = contest.entry()
    one_thread()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    client = Connection(f"zpull://127.0.0.1:{port}", converters="torch")
    spawn = multiprocessing.get_context("spawn")
    servers = [spawn.Process(target=_serve, args=(n, port, given), daemon=True) for n in range(given.workers)]
    for server in servers:
        server.start()
    contest.measure(client, given)
    for server in servers:
        server.kill()
        server.join()
    os._exit(0)  # its context would wait for ever


if __name__ == "__main__":
    main()
