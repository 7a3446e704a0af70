"""An epoch of 784-1024-10 with its data path: in-memory batches against torch's DataLoader over tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from spela.benchmarks.network import LEARNING_RATE, NetworkCase
from spela.layers import SpelaLinear
from spela.optim import LocalSGD

__all__ = ["EPOCH_VARIANTS", "epoch_data"]

_CASE = NetworkCase((784, 1024, 10), 50)


def epoch_data(samples: int, device: str = "cpu") -> tuple[str, Tensor, Tensor]:
    """Fashion-MNIST's training images where they are at hand, else random ones of the same shape.

    Args:
        samples: How many, 60,000 at most.
        device: Where they lie, and where networks train on them.

    Returns:
        A name that says which, uint8 images (N, 28, 28), labels (N,).
    """
    # Here, so that steps can be measured where the packages that read files are missing.
    from spela.data import is_available, load_dataset

    if is_available("fashion-mnist"):
        data = load_dataset("fashion-mnist", download=False)
        x, y = data.train_x[:samples], data.train_y[:samples]
        return "fashion-mnist", x.to(device), y.to(device)
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256, (samples, 28, 28), generator=g, dtype=torch.uint8)
    labels = torch.randint(10, (samples,), generator=g)
    return "random images", images.to(device), labels.to(device)


def _in_memory(x: Tensor, y: Tensor) -> Callable[[], None]:
    from spela.data import Batches, epoch_generator

    net = _CASE.network().to(x.device)
    optimizer = LocalSGD(net.parameters(), lr=LEARNING_RATE)

    def epoch() -> None:
        batches = Batches(x, y, _CASE.batch, shuffle=True, generator=epoch_generator(0, 0))
        for images, target in batches:
            net.local_step(images.flatten(1), target, optimizer)

    return epoch


def _loader(x: Tensor, y: Tensor) -> DataLoader[tuple[Tensor, ...]]:
    """Torch's loader, over tensors in main memory as in most programs."""
    return DataLoader(TensorDataset(x.cpu().float().div(255), y.cpu()), _CASE.batch, shuffle=True)


def _data_loader(x: Tensor, y: Tensor) -> Callable[[], None]:
    """The same network, step and batches, from torch's loader over float tensors."""
    net = _CASE.network().to(x.device)
    optimizer = LocalSGD(net.parameters(), lr=LEARNING_RATE)
    loader = _loader(x, y)

    def epoch() -> None:
        for images, target in loader:
            net.local_step(images.to(x.device).flatten(1), target.to(x.device), optimizer)

    return epoch


def _published(x: Tensor, y: Tensor) -> Callable[[], None]:
    """The usual way: torch's loader, one autograd graph a layer, and the loss read in every step."""
    net = _CASE.network().to(x.device)
    layers = [module for module in net if isinstance(module, SpelaLinear)]
    optimizers = [torch.optim.SGD(layer.parameters(), lr=LEARNING_RATE) for layer in layers]
    loader = _loader(x, y)

    def epoch() -> None:
        for images, labels in loader:
            h, target = images.to(x.device).flatten(1), labels.to(x.device)
            for layer, optimizer in zip(layers, optimizers, strict=True):
                output = layer(h)
                cosine = torch.nn.functional.cosine_similarity(output, layer.vectors[target])
                loss = torch.log(2 - cosine).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss.item()
                h = output.detach()

    return epoch


EPOCH_VARIANTS: dict[str, Callable[[Tensor, Tensor], Callable[[], None]]] = {
    "spela": _in_memory,
    "data_loader": _data_loader,
    "autograd_data_loader": _published,
}
