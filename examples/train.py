"""Train a small network on batches from feedmill servers.

feedmill serve 'train-{000000..000009}.tar' --preset imagenet-train
python examples/train.py tcp://127.0.0.1:7880 --classes 1000 --epochs 2
"""

import argparse

import torch
from torch import nn

import feedmill


def network(classes: int) -> nn.Module:
    """Return a convolutional network that a CPU can train."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def main() -> None:
    """Train, and print the loss of every epoch."""
    parser = argparse.ArgumentParser(description="Train a small network on batches from feedmill servers.")
    parser.add_argument("url", help="servers, like tcp://cpu-{0..3}:7880")
    parser.add_argument("--stream", help="its name, if the servers have several")
    parser.add_argument("--keys", metavar="DIR", help="folder with our keys, for servers that have keys")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=1)
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = network(args.classes).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with feedmill.connect(args.url, args.stream, device=device, keys=args.keys) as feed:
        for epoch in range(args.epochs):
            total = 0.0
            for images, labels in feed:
                loss = nn.functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item()
            print(f"epoch {epoch}: loss {total / len(feed):.3f}; {feed.stats().verdict}")


if __name__ == "__main__":
    main()
