"""Training steps of networks of linear layers: ours, the rivals', and the floor: the products alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spela.benchmarks.adam import capturable_adam
from spela.benchmarks.backprop import backprop_step
from spela.benchmarks.clock import interleaved_medians
from spela.layers import SpelaLinear
from spela.network import SpelaSequential
from spela.optim import LocalAdam, LocalSGD
from spela.process import seeded
from spela_kernels.cpu.gemm import onednn_works

__all__ = ["NETWORK_CASES", "VARIANTS", "NetworkCase", "check_parity", "floor_step"]

LEARNING_RATE = 0.1
ADAM_RATE = 1e-3


@dataclass(frozen=True)
class NetworkCase:
    """One network and batch.

    Attributes:
        sizes: Input features, then the outputs of every layer.
        batch: Samples a step.
        classes: C.
        device: Where it runs.
        objective: Of the SPELA layers.
    """

    sizes: tuple[int, ...]
    batch: int
    classes: int = 10
    device: str = "cpu"
    objective: str = "log"

    @property
    def name(self) -> str:
        """A readable id."""
        return f"{'-'.join(map(str, self.sizes))}/b{self.batch}"

    def data(self) -> tuple[Tensor, Tensor]:
        """A batch of random inputs and labels, the same for every variant."""
        g = torch.Generator().manual_seed(0)
        target = torch.randint(self.classes, (self.batch,), generator=g)
        x = torch.rand(self.batch, self.sizes[0], generator=g)
        return x.to(self.device), target.to(self.device)

    def network(self) -> SpelaSequential:
        """The SPELA network, the same for every variant."""
        g = torch.Generator().manual_seed(0)
        pairs = zip(self.sizes[:-1], self.sizes[1:], strict=True)
        layers = (
            SpelaLinear(i, o, self.classes, objective=self.objective, generator=g) for i, o in pairs
        )
        return SpelaSequential(*layers).to(self.device)


NETWORK_CASES = (
    NetworkCase((784, 1024, 10), 50),
    NetworkCase((784, 1024, 1024, 1024), 50),
    NetworkCase((784, 1024, 1024, 1024), 512),
)
Step = Callable[[], Any]


def _spela(case: NetworkCase) -> Step:
    (x, target), net = case.data(), case.network()
    optimizer = LocalSGD(net.parameters(), lr=LEARNING_RATE)
    return lambda: net.local_step(x, target, optimizer)


def _spela_adam(case: NetworkCase) -> Step:
    (x, target), net = case.data(), case.network()
    optimizer = LocalAdam(net.parameters(), lr=ADAM_RATE)
    return lambda: net.local_step(x, target, optimizer)


def _spela_bf16(case: NetworkCase) -> Step:
    step = _spela(case)

    def mixed() -> None:
        with torch.autocast(torch.device(case.device).type, dtype=torch.bfloat16):
            step()

    return mixed


def _autograd(
    case: NetworkCase, rule: Callable[..., torch.optim.Optimizer], **settings: Any
) -> Step:
    """The published formulation: one autograd graph, one backward and one optimizer a layer."""
    (x, target), net = case.data(), case.network()
    layers = [module for module in net if isinstance(module, SpelaLinear)]
    optimizers = [rule(layer.parameters(), **settings) for layer in layers]

    def step() -> Tensor:
        h, losses = x, []
        for layer, optimizer in zip(layers, optimizers, strict=True):
            y = nn.functional.leaky_relu(nn.functional.linear(h, layer.weight, layer.bias), 1e-3)
            cosine = nn.functional.cosine_similarity(y, layer.vectors[target], dim=1)
            loss = torch.log(2 - cosine).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            h = y.detach()
        return torch.stack(losses)

    return step


def _backprop(case: NetworkCase, compiled: bool = False, fused: bool | None = None) -> Step:
    """Cross-entropy through the same layers and an output layer, SGD; its step fused or as torch chooses."""
    x, target = case.data()
    modules: list[nn.Module] = []
    with seeded(0, torch.device("cpu")):
        for i, o in zip(case.sizes[:-1], case.sizes[1:], strict=True):
            modules += [nn.Linear(i, o), nn.LeakyReLU(1e-3)]
        modules.append(nn.Linear(case.sizes[-1], case.classes))
    net = nn.Sequential(*modules).to(case.device)
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE, fused=fused)
    if not compiled:
        return backprop_step(net, x, target, optimizer)
    # Of this shape alone: after another one torch would compile for all.
    forward = torch.compile(
        lambda x, target: nn.functional.cross_entropy(net(x), target), dynamic=False
    )
    update = torch.compile(optimizer.step, dynamic=False)

    def step() -> None:
        forward(x, target).backward()
        update()
        optimizer.zero_grad()

    return step


def _fastest(candidates: dict[str, Step], device: torch.device) -> Step:
    times = interleaved_medians(candidates, 0.05, 9, device)
    return candidates[min(times, key=times.__getitem__)]


def _products(x: Tensor, weight: Tensor, dz: Tensor) -> list[Step]:
    """x W^T and W + dz^T x (or dz^T x alone), each by the library call that is fastest here."""
    gradient = torch.empty_like(weight)
    forward: dict[str, Step] = {"blas": lambda: x @ weight.T}
    update: dict[str, Step] = {
        "in place": lambda: weight.addmm_(dz.T, x, alpha=1e-9),
        "out": lambda: torch.mm(dz.T, x, out=gradient),
    }
    if x.device.type == "cpu" and onednn_works():
        fused = torch.ops.mkldnn._linear_pointwise
        forward["onednn"] = lambda: fused(x, weight, None, "none", [], "")
        update["onednn"] = lambda: fused(dz.T, x.T, None, "none", [], "")
    return [_fastest(forward, x.device), _fastest(update, x.device)]


def floor_step(case: NetworkCase) -> Step:
    """The products of a step alone, on tensors of their own: no loss, no statistics, no activation."""
    g = torch.Generator().manual_seed(0)
    products: list[Step] = []
    for i, o in zip(case.sizes[:-1], case.sizes[1:], strict=True):
        shapes = ((case.batch, i), (o, i), (case.batch, o))
        x, weight, dz = (torch.rand(shape, generator=g).to(case.device) for shape in shapes)
        products += _products(x, weight, dz)

    @torch.no_grad()
    def step() -> None:
        for product in products:
            product()

    return step


VARIANTS: dict[str, Callable[[NetworkCase], Step]] = {
    "spela": _spela,
    "floor": floor_step,
    "autograd_spela": lambda case: _autograd(case, torch.optim.SGD, lr=LEARNING_RATE),
    "backprop": _backprop,
    "backprop_fused": lambda case: _backprop(case, fused=True),
    "backprop_compiled": lambda case: _backprop(case, compiled=True),
    "spela_adam": _spela_adam,
    "autograd_spela_adam": lambda case: _autograd(case, capturable_adam, lr=ADAM_RATE),
    "spela_bf16": _spela_bf16,
}


def check_parity(case: NetworkCase) -> None:
    """Three steps of ours beside the published formulation's, by SGD and by Adam.

    Raises:
        ValueError: If their losses differ: a speed would compare different things.
    """
    for ours, theirs in (("spela", "autograd_spela"), ("spela_adam", "autograd_spela_adam")):
        fused, published = VARIANTS[ours](case), VARIANTS[theirs](case)
        for number in range(3):
            now, then = fused(), published()
            if not torch.allclose(now, then, rtol=1e-4, atol=1e-5):
                raise ValueError(
                    f"{case.name}: {ours} and {theirs} differ in step {number + 1}: "
                    f"{now.tolist()} and {then.tolist()}"
                )
