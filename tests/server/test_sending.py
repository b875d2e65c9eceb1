from collections.abc import Iterator

import pytest
import zmq

from feedmill_protocol import codec
from feedmill_protocol.messages import Batch
from feedmill_protocol.tensors import TensorSpec
from feedmill_server.builds import Reply
from feedmill_server.sending import Sender
from feedmill_server.slots import Slot
from integration.processes import wait_until


@pytest.fixture
def slot() -> Iterator[Slot]:
    made = Slot(1, 4096)
    yield made
    made.close()


def test_a_sender_adds_up_how_long_batches_are_on_their_way(slot: Slot) -> None:
    """From when libzmq was given one until it was seen to have let go of it."""
    now = [100.0]
    message = Batch(epoch=0, batch=0, attempt=1, tensors=(TensorSpec("uint8", (4096,)),), keys=0)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router, context.socket(zmq.DEALER) as dealer:
        router.linger = dealer.linger = 0
        port = router.bind_to_random_port("tcp://127.0.0.1")
        dealer.connect(f"tcp://127.0.0.1:{port}")
        dealer.send(b"")
        client = router.recv_multipart()[0]
        sender = Sender(router, lambda: now[0])
        for seconds in (3.0, 4.0):
            sender.send(Reply(client, message, slot, b"", codec.checksum(slot.memory)))
            assert sender
            now[0] += seconds
            dealer.recv_multipart()
            wait_until(sender.left, 5, "libzmq has let go of it")
            assert not sender
        assert sender.seconds == 7.0
