"""A pretrained network learns on a few images block by block: less memory than backprop, its own heads.

    pip install -e ".[transfer]"             # EfficientNet-Lite0, trained on ImageNet
    python examples/finetune_blocks.py --data cifar10 --data-root ROOT [--blocks 3] [--images 1000]

Prints test accuracy and a step's peak memory with the body frozen, in blocks and end to end.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from spela import SpelaSequential, convert
from spela.benchmarks.memory import peak_bytes
from spela.data import load_dataset
from spela.data.prepare import prepare
from spela.features import load_backbone

NAME = "efficientnet-lite0"


def build(num_classes: int, size: int, blocks: int) -> SpelaSequential:
    """The pretrained network cut into blocks, whose heads are new."""
    net = load_backbone(NAME, size).net.requires_grad_(True)
    net = net.to(memory_format=torch.channels_last)  # what a CPU computes in
    generator = torch.Generator().manual_seed(0)
    sample = torch.zeros(2, 3, size, size)
    return convert(net, num_classes, sample, blocks=blocks, hidden=256, generator=generator)


def images(x: Tensor, size: int) -> Tensor:
    """Pixels (N, C, H, W) as the backbone wants them: RGB, size x size, normalised."""
    backbone = load_backbone(NAME, size)
    x = prepare(x).expand(-1, 3, -1, -1)
    x = nn.functional.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in (backbone.mean, backbone.std))
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


def learn(net: SpelaSequential, x: Tensor, y: Tensor, epochs: int, frozen: bool) -> int:
    """Train in place by local steps; returns the peak bytes of one of them."""
    for block in net:
        block.body.requires_grad_(not frozen)
    net.train()
    for block in net:
        # In eval mode a body keeps its batch norms' statistics: few images would spoil what many taught.
        block.body.eval()
    heads = [parameter for block in net for parameter in block.head_parameters()]
    bodies = [parameter for block in net for parameter in block.body.parameters()]
    groups = [{"params": heads, "lr": 1e-3}, {"params": bodies, "lr": 1e-4}]  # bodies know much
    optimizer = torch.optim.AdamW(groups)
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(y), generator=order).split(64):
            net.local_step(x[rows], y[rows], optimizer)
    peak = peak_bytes(lambda: net.local_step(x[:64], y[:64], optimizer))
    net.eval()
    return peak


def accuracy(net: SpelaSequential, x: Tensor, y: Tensor) -> float:
    """Share of images whose class the last block names, 0..1."""
    parts = zip(x.split(100), y.split(100), strict=True)
    right = sum(int((net.predict(rows) == labels).sum()) for rows, labels in parts)
    return right / len(y)


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--images", type=int, default=1000, help="to learn from, and to test on")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    options = parser.parse_args(arguments)
    data = load_dataset(options.data, options.data_root)
    count, size = options.images, options.size
    x, test_x = images(data.train_x[:count], size), images(data.test_x[:count], size)
    y, test_y = data.train_y[:count], data.test_y[:count]
    print(f"{NAME}, {len(y)} images of {options.data}, {options.epochs} epochs")
    print(f"{'':24}{'accuracy, %':>12}{'MB a step':>12}")
    for name, blocks, frozen in (
        ("head on a frozen body", 1, True),
        (f"{options.blocks} blocks", options.blocks, False),
        ("end to end", 1, False),
    ):
        net = build(data.num_classes, size, blocks)
        peak = learn(net, x, y, options.epochs, frozen)
        print(
            f"{name:24}{100 * accuracy(net, test_x, test_y):>12.1f}{peak / 1e6:>12.0f}", flush=True
        )


if __name__ == "__main__":
    main()
