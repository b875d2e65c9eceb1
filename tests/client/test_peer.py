import time

import zmq

from feedmill.peer import Peer
from feedmill_sockets.inflow import Inflow
from integration.processes import wait_until


def test_a_connection_that_is_lost_has_no_descriptor_any_more() -> None:
    """Another server's connection may have it from then on."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind("tcp://127.0.0.1:*")
        peer = Peer(context, router.get_string(zmq.LAST_ENDPOINT), None)
        inflow = Inflow(2**20)

        def stands() -> bool:
            for _ in peer.observe(inflow, time.monotonic()):
                pass
            return peer.connected

        wait_until(stands, 5, "the connection stands")
        assert peer.fd >= 0
        router.close(linger=0)
        wait_until(lambda: not stands(), 5, "the connection is lost")
        assert peer.fd == -1
        peer.close()
        inflow.close()
