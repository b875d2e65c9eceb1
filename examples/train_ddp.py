"""Train on several ranks. Stop it when you like; it goes on where it was, also on another number of ranks.

feedmill serve 'train-{000000..000009}.tar' --preset imagenet-train
torchrun --nproc-per-node 2 examples/train_ddp.py tcp://127.0.0.1:7880 --checkpoint run.pt
"""

import argparse
import os
from pathlib import Path

import torch
from torch import distributed, nn

import feedmill


def network(classes: int) -> nn.Module:
    """Return a convolutional network that a CPU can train."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def main() -> None:
    """Train, with a checkpoint every so many steps."""
    parser = argparse.ArgumentParser(description="Train a small network on several ranks.")
    parser.add_argument("url", help="servers, like tcp://cpu-{0..3}:7880")
    parser.add_argument("--stream", help="its name, if the servers have several")
    parser.add_argument("--keys", metavar="DIR", help="folder with our keys, for servers that have keys")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path, default="checkpoint.pt")
    parser.add_argument("--every", type=int, default=100, metavar="STEPS", help="default: %(default)s")
    args = parser.parse_args()

    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group()
    model = nn.parallel.DistributedDataParallel(network(args.classes).to(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with feedmill.connect(args.url, args.stream, device=device, keys=args.keys) as feed:
        if args.checkpoint.exists():  # on a disk that all ranks share
            saved = torch.load(args.checkpoint, map_location=device, weights_only=True)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            feed.load_state_dict(saved["feed"])
        for epoch in range(feed.epoch, args.epochs):
            for step, (images, labels) in enumerate(feed, 1):
                loss = nn.functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if step % args.every == 0 or not feed.remaining:
                    save(args.checkpoint, model, optimizer, feed)
            if distributed.get_rank() == 0:
                print(f"epoch {epoch}: {feed.stats()}")
    distributed.destroy_process_group()


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, feed: feedmill.Feed) -> None:
    """Write a checkpoint, which is either the old one or the new one whenever the process ends."""
    if distributed.get_rank() == 0:  # the state of its feed is that of all
        unfinished = path.with_suffix(".new")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "feed": feed.state_dict()}
        torch.save(state, unfinished)
        unfinished.replace(path)


if __name__ == "__main__":
    main()
