"""A trainer that says of every epoch how often each sample has come, and from whom. It runs in a container.

It ends three epochs after the one in which it has heard of so many servers.
"""

import argparse
import json
import time
from collections import Counter

import feedmill

parser = argparse.ArgumentParser()
parser.add_argument("url")
parser.add_argument("--keys")
parser.add_argument("--servers", type=int, default=3)
parser.add_argument("--timeout", type=float, default=60)
args = parser.parse_args()

with feedmill.connect(args.url, keys=args.keys, timeout=args.timeout) as feed:
    servers: set[str] = set()
    left = 3
    while left:
        left -= len(servers) >= args.servers
        came: Counter[str] = Counter()
        for batch in feed.batches():
            came.update(batch.keys)
            servers.add(batch.server)
            time.sleep(0.1)
        print(  # noqa: T201 # the test reads this
            json.dumps({"came": came.total(), "distinct": len(came), "servers": sorted(servers)}), flush=True
        )
