"""Steps of a whole network of convolution layers: ours, backprop's, and the floor: the convolutions alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spela.benchmarks.backprop import backprop_step
from spela.layers import SpelaConv2d
from spela.network import SpelaSequential
from spela.optim import LocalAdam
from spela.process import seeded

__all__ = ["CNN_CASE", "CNN_VARIANTS", "CnnCase"]

_CLASSES = 10
_POOL = 2
_LR = 3e-3
Step = Callable[[], object]


@dataclass(frozen=True)
class CnnCase:
    """The recipe `best` of `cnn`: convolutions with batch norm and a 2 x 2 max pool, then one linear output.

    SPELA's last convolution answers by itself; backprop's has a linear layer behind it.

    Attributes:
        channels: Kernels of each convolution.
        kernel_size: Their height and width.
        pixels: Height and width of the images, which have one channel.
        batch: Samples a step.
        device: Where it runs.
    """

    channels: tuple[int, ...] = (128, 128)
    kernel_size: int = 5
    pixels: int = 28
    batch: int = 64
    device: str = "cpu"

    @property
    def name(self) -> str:
        """A readable id."""
        sizes = "-".join(map(str, self.channels))
        side = self.kernel_size
        return f"cnn {sizes} of {side} x {side}, 1 x {self.pixels} x {self.pixels}/b{self.batch}"

    def sizes(self) -> list[tuple[int, int, int]]:
        """Input channels, kernels and the pooled map's side of each convolution."""
        found, inputs, side = [], 1, self.pixels
        for kernels in self.channels:
            side = (side - self.kernel_size + 1) // _POOL
            found.append((inputs, kernels, side))
            inputs = kernels
        return found

    def data(self) -> tuple[Tensor, Tensor]:
        """A batch of random images and labels, the same for every variant."""
        g = torch.Generator().manual_seed(1)
        x = torch.rand(self.batch, 1, self.pixels, self.pixels, generator=g)
        target = torch.randint(_CLASSES, (self.batch,), generator=g)
        return x.to(self.device), target.to(self.device)


def _spela(case: CnnCase) -> Step:
    g = torch.Generator().manual_seed(0)
    layers = (
        SpelaConv2d(
            inputs,
            kernels,
            case.kernel_size,
            _CLASSES,
            (side, side),
            symmetric_dim=16,
            projection_std=0.1,
            grouping=_CLASSES,
            pool_size=_POOL,
            objective="softmax",
            generator=g,
        )
        for inputs, kernels, side in case.sizes()
    )
    net = SpelaSequential(*layers).to(case.device)
    (x, target), optimizer = case.data(), LocalAdam(net.parameters(), lr=_LR)
    return lambda: net.local_step(x, target, optimizer)


def _backprop(case: CnnCase) -> Step:
    modules: list[nn.Module] = []
    _, last, side = case.sizes()[-1]
    with seeded(0, torch.device("cpu")):
        for inputs, kernels, _ in case.sizes():
            modules += [
                nn.Conv2d(inputs, kernels, case.kernel_size),
                nn.BatchNorm2d(kernels),
                nn.ReLU(),
                nn.MaxPool2d(_POOL),
            ]
        output = nn.Linear(last * side**2, _CLASSES)
    net = nn.Sequential(*modules, nn.Flatten(), output).to(case.device)
    x, target = case.data()
    optimizer = torch.optim.AdamW(net.parameters(), lr=_LR, fused=True)
    return backprop_step(net, x, target, optimizer)


def _floor(case: CnnCase) -> Step:
    """What a step without any other arithmetic takes: each convolution and its weight gradient."""
    parts = []
    side, window = case.pixels, (case.kernel_size, case.kernel_size)
    for inputs, kernels, pooled in case.sizes():
        x = torch.ones(case.batch, inputs, side, side, device=case.device)
        weight = torch.ones(kernels, inputs, *window, device=case.device)
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
        parts.append((x, weight, torch.ones_like(nn.functional.conv2d(x, weight))))
        side = pooled

    @torch.no_grad()
    def step() -> None:
        for x, weight, gradient in parts:
            nn.functional.conv2d(x, weight)
            torch.ops.aten.convolution_backward(
                *(gradient, x, weight, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1),
                (False, True, False),
            )

    return step


CNN_CASE = CnnCase()
CNN_VARIANTS: dict[str, Callable[[CnnCase], Step]] = {
    "spela": _spela,
    "floor": _floor,
    "backprop": _backprop,
}
