"""A trainer that tells what it gets, a line of JSON a batch; SIGUSR1 has it end with the epoch that it is in."""

import argparse
import json
import signal
from threading import Event
from time import sleep

import feedmill

PAUSE = 0.02
"""Seconds between batches: an epoch of 32 takes about two seconds, in which things can happen."""

parser = argparse.ArgumentParser()
parser.add_argument("url")
parser.add_argument("--keys")
parser.add_argument("--epochs", type=int)
args = parser.parse_args()

enough = Event()
signal.signal(signal.SIGUSR1, lambda *_: enough.set())
with feedmill.connect(args.url, keys=args.keys) as feed:
    for _ in range(args.epochs):
        for batch in feed.batches():
            print(json.dumps({"epoch": batch.epoch, "server": batch.server, "keys": batch.keys}), flush=True)
            sleep(PAUSE)
        if enough.is_set():
            break
print("done", flush=True)
