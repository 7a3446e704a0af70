"""What a layer is doing, beyond its accuracy: loss, norms, dead units, margins, agreement with backprop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from spela.data import Dataset, prepare
from spela.layers import LocalLayer
from spela.layers.modes import in_eval_mode

__all__ = ["DiagnosedByHand", "LayerDiagnostics", "Probe", "diagnose"]

PROBE_SAMPLES = 500
# Input values of the probe: the maps of a convolution are some hundred times larger.
PROBE_VALUES = 784_000


@runtime_checkable
class DiagnosedByHand(Protocol):
    """A network whose steps use gradients of its own making, as the rivals do."""

    def probe_gradients(self, x: Tensor, target: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(loss (), weight, the local gradient of that weight) of every linear layer."""


@runtime_checkable
class _Embeds(Protocol):
    def embed(self, x: Tensor, labels: Tensor) -> Tensor:
        """Inputs with their labels in them."""


@dataclass(frozen=True)
class LayerDiagnostics:
    """One layer with weights on the probe set; None where a figure has no meaning for the method.

    Attributes:
        loss: Mean local loss, of the whole network where it has but one.
        weight_norm: Frobenius norm of the weight.
        dead_units: Share 0..1 of units (channels of a convolution) whose output is positive for no
            probe sample; every activation here is positive exactly where its input is.
        cosine_margin: Mean of cos(y, v_label) - max over other classes, in -2..2, for SPELA layers.
        alignment: Cosine, -1..1, of the local gradient of the weight and the one that backpropagating
            the cross-entropy of the network's final scores gives it.
    """

    loss: float
    weight_norm: float
    dead_units: float
    cosine_margin: float | None
    alignment: float | None


@dataclass(frozen=True)
class Probe:
    """Fixed samples on which a network is looked at.

    Attributes:
        x: (N, ...) inputs as the network takes them.
        target: (N,) labels.
    """

    x: Tensor
    target: Tensor

    @classmethod
    def of(cls, dataset: Dataset) -> Probe:
        """At most 500 training samples at equal distances: nothing random, so nothing to seed."""
        total = len(dataset.train_y)
        values = max(1, PROBE_VALUES // dataset.train_x[0].numel())
        count = min(PROBE_SAMPLES, values, total)
        index = torch.arange(count, device=dataset.train_y.device) * total // count
        return cls(prepare(dataset.train_x[index]), dataset.train_y[index])


@contextmanager
def _as_in_evaluation(net: nn.Module) -> Iterator[None]:
    """Eval mode, all parameters differentiable; both as they were afterwards."""
    frozen = [p for p in net.parameters() if not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with in_eval_mode(net), torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def diagnose(net: nn.Module, probe: Probe) -> list[LayerDiagnostics]:
    """Look at every layer with weights; nothing in the network, its gradients or any generator changes.

    The end-to-end gradient is that of cross-entropy(s * net(x)), with s the factor of the cosines
    (`scale`) of a SPELA network's last layer and 1 for other networks.

    Args:
        net: A SpelaSequential or one of the baselines.
        probe: The samples.

    Returns:
        One `LayerDiagnostics` for every linear or convolution layer, first to last.

    Example:
        >>> from spela.layers import SpelaLinear
        >>> from spela.network import SpelaSequential
        >>> net = SpelaSequential(SpelaLinear(4, 16, 3))
        >>> rows = diagnose(net, Probe(torch.randn(9, 4), torch.arange(9) % 3))
        >>> rows[0].loss > 0
        True
    """
    with _as_in_evaluation(net):
        outputs = _outputs(net, probe)
        layers = list(outputs)
        weights = [layer.weight for layer in layers]
        final = net(probe.x)
        last = list(net.children())[-1]
        scale = float(getattr(last, "scale", 1.0)) if isinstance(last, LocalLayer) else 1.0
        end_to_end = torch.autograd.grad(
            nn.functional.cross_entropy(scale * final, probe.target),
            weights,
            allow_unused=True,
        )
        losses, local = _local(net, probe, weights)
    return [
        LayerDiagnostics(
            loss=losses[min(index, len(losses) - 1)],
            weight_norm=float(torch.linalg.vector_norm(layer.weight.detach().double())),
            dead_units=_dead(outputs[layer]),
            cosine_margin=_margin(layer, outputs[layer], probe.target),
            alignment=_cosine(local[index], end_to_end[index]),
        )
        for index, layer in enumerate(layers)
    ]


def _outputs(net: nn.Module, probe: Probe) -> dict[Any, Tensor]:
    """Output of every linear or convolution layer, in order, with its activation and pooling."""
    found: dict[Any, Tensor] = {}
    owner: nn.Module | None = None
    x = probe.x
    if isinstance(net, _Embeds):
        x = net.embed(x, probe.target)
    with torch.no_grad():
        for module in net.children():
            x = module(x)
            if isinstance(module, nn.Linear | nn.Conv2d):
                found[module] = x
                # A SPELA layer has its activation in it, and its scores are those of its own output.
                owner = None if isinstance(module, LocalLayer) else module
            elif isinstance(module, nn.Flatten):
                owner = None
            elif owner is not None:
                found[owner] = x  # what follows a baseline's layer is part of it, up to the next
    return found


def _local(
    net: nn.Module, probe: Probe, weights: Sequence[Tensor]
) -> tuple[list[float], Sequence[Tensor | None]]:
    """Local losses, and the gradient of each weight by which its layer learns."""
    if isinstance(net, DiagnosedByHand):
        rows = net.probe_gradients(probe.x, probe.target)
        by_weight = {id(weight): gradient for _, weight, gradient in rows}
        return [float(loss) for loss, _, _ in rows], [by_weight.get(id(w)) for w in weights]
    if hasattr(net, "local_losses"):
        losses = net.local_losses(probe.x, probe.target)  # type: ignore[operator]
    else:
        losses = nn.functional.cross_entropy(net(probe.x), probe.target).reshape(1)
    gradients = torch.autograd.grad(losses.sum(), list(weights), allow_unused=True)
    return losses.detach().tolist(), gradients


def _dead(y: Tensor) -> float:
    active = (y > 0).transpose(0, 1).flatten(1).any(dim=1)  # (units,)
    return float((~active).double().mean())


def _margin(layer: nn.Module, y: Tensor, target: Tensor) -> float | None:
    if not isinstance(layer, LocalLayer):
        return None
    cosines = layer.scores(y).detach().double()
    own = cosines.gather(1, target[:, None])
    others = cosines.scatter(1, target[:, None], -torch.inf)
    return float((own - others.max(dim=1, keepdim=True).values).mean())


def _cosine(first: Tensor | None, second: Tensor | None) -> float | None:
    if first is None or second is None:
        return None
    product = torch.linalg.vector_norm(first.double()) * torch.linalg.vector_norm(second.double())
    if not float(product) > 0:
        return None  # one of them is zero: no direction
    return float((first.double() * second.double()).sum() / product)
