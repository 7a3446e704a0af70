"""Steps of one convolution layer: ours, and the same mathematics through autograd in two formulations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spela.benchmarks.adam import capturable_adam
from spela.layers import SpelaConv2d
from spela.optim import LocalAdam

__all__ = ["CONV_CASES", "CONV_VARIANTS", "ConvCase", "check_conv_parity", "make_conv_step"]

LEARNING_RATE = 0.1


@dataclass(frozen=True)
class ConvCase:
    """The first layer of the `cnn` recipe on images of one size.

    Attributes:
        name: Readable id.
        channels: Of the images.
        pixels: Height and width of the images.
        batch: Samples a step.
        device: Where it runs.
    """

    name: str
    channels: int
    pixels: int
    batch: int = 64
    device: str = "cpu"

    def layer(self) -> SpelaConv2d:
        """The layer, the same for every variant."""
        g = torch.Generator().manual_seed(0)
        pooled = (self.pixels - 4) // 2
        layer = SpelaConv2d(self.channels, 128, 5, 10, (pooled, pooled), generator=g)
        return layer.to(self.device)

    def data(self) -> tuple[Tensor, Tensor]:
        """A batch of random images and labels."""
        g = torch.Generator().manual_seed(1)
        x = torch.rand(self.batch, self.channels, self.pixels, self.pixels, generator=g)
        target = torch.randint(10, (self.batch,), generator=g)
        return x.to(self.device), target.to(self.device)


CONV_CASES = {
    case.name: case for case in (ConvCase("64x3x64x64", 3, 64), ConvCase("64x1x28x28", 1, 28))
}


def _ours(case: ConvCase) -> Callable[[], Tensor]:
    layer, (x, target) = case.layer(), case.data()
    optimizer = LocalAdam(layer.parameters(), lr=LEARNING_RATE)
    return lambda: layer.local_step(x, target, optimizer)[0]


def _autograd(case: ConvCase, project: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
    layer, (x, target) = case.layer(), case.data()
    optimizer = capturable_adam(layer.parameters(), lr=LEARNING_RATE)

    def step() -> Tensor:
        p = project(layer(x).flatten(2), layer.projection)  # (B, K, d)
        kernel = torch.arange(len(layer.grouping), device=target.device)
        own = layer.vectors[kernel, layer.grouping[:, target].T]  # (B, K, d)
        loss = (1 - nn.functional.cosine_similarity(p, own, dim=2)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _broadcast(z: Tensor, projection: Tensor) -> Tensor:
    """As the authors write it: torch copies the projections for every sample."""
    return (z.unsqueeze(2) @ projection).squeeze(2)


def _batched(z: Tensor, projection: Tensor) -> Tensor:
    """One product a kernel."""
    return torch.bmm(z.transpose(0, 1), projection).transpose(0, 1)


def _floor(case: ConvCase) -> Callable[[], Tensor]:
    """The products alone: convolution, its weight gradient, and three batched ones with the projection."""
    layer, (x, _) = case.layer(), case.data()
    x = x.contiguous(memory_format=torch.channels_last)
    weight = layer.weight.detach().contiguous(memory_format=torch.channels_last)
    projection = layer.projection.detach()  # (K, D, d)
    kernels, size, dim = projection.shape
    dconv = torch.rand_like(nn.functional.conv2d(x, weight))
    z = torch.rand(kernels, case.batch, size, device=x.device)
    dp = torch.rand(kernels, case.batch, dim, device=x.device)

    @torch.no_grad()
    def step() -> Tensor:
        nn.functional.conv2d(x, weight)
        torch.ops.aten.convolution_backward(
            dconv, x, weight, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1, (False, True, False)
        )
        torch.bmm(z, projection)
        torch.bmm(dp, projection.mT)
        return torch.bmm(z.mT, dp)

    return step


CONV_VARIANTS: dict[str, Callable[[ConvCase], Callable[[], Tensor]]] = {
    "spela": _ours,
    "floor": _floor,
    "autograd_batched": lambda case: _autograd(case, _batched),
    "autograd_broadcast": lambda case: _autograd(case, _broadcast),
}


def make_conv_step(variant: str, case: ConvCase) -> Callable[[], Tensor]:
    """A step of a variant on a case, ready to be called again and again."""
    return CONV_VARIANTS[variant](case)


def check_conv_parity(case: ConvCase) -> None:
    """Two steps of ours beside autograd's, on a GPU without TF32, which torch lets convolutions have.

    Raises:
        ValueError: If their losses differ.
    """
    steps = {name: make_conv_step(name, case) for name in CONV_VARIANTS if name != "floor"}
    for _ in range(2):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            losses = {name: step() for name, step in steps.items()}
        for name, loss in losses.items():
            if not torch.allclose(loss, losses["spela"], rtol=1e-4, atol=1e-5):
                raise ValueError(f"{case.name}: {name} gives another loss than ours")
