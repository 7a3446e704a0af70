"""What a layer is doing, beyond its accuracy: loss, norms, dead units, margins, agreement with backprop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from spela.data import Dataset, prepare
from spela.layers import LocalLayer, SpelaBlock
from spela.layers.modes import in_eval_mode, output_of
from spela.layers.projected import ProjectedLayer

__all__ = [
    "NETWORK_PROBE_SAMPLES",
    "PROBE_SAMPLES",
    "DiagnosedByHand",
    "LayerDiagnostics",
    "Probe",
    "diagnose",
]

PROBE_SAMPLES = 500
# Input values of the probe: the maps of a convolution are some hundred times larger.
PROBE_VALUES = 784_000
# Of a network by name, whose end-to-end gradient takes as much memory as backprop on so many does.
NETWORK_PROBE_SAMPLES = 128


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

    Of a block, and of a baseline's module that holds several layers, the weights are all parameters with two
    axes or more, taken as one vector; a block's head is not among them.

    Attributes:
        loss: Mean local loss, of the whole network where it has but one.
        weight_norm: Frobenius norm of the weight; of a binary one, of the latent weight.
        dead_units: Share 0..1 of units (channels of maps, features of tokens) whose output is positive for
            no probe sample; every activation here is positive exactly where its input is. Of a transformer,
            whose features no activation ends, it says little.
        cosine_margin: Mean of cos(y, v_label) - max over other classes, in -2..2, for SPELA layers; a
            block's y is what its head turns.
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
    def of(cls, dataset: Dataset, most: int = PROBE_SAMPLES) -> Probe:
        """At most so many training samples at equal distances: nothing random, so nothing to seed."""
        total = len(dataset.train_y)
        values = max(1, PROBE_VALUES // dataset.train_x[0].numel())
        count = min(most, values, total)
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
    (`scale`) of a SPELA network's last layer and 1 for other networks. It takes backprop's memory on the
    probe.

    Args:
        net: A SpelaSequential or one of the baselines.
        probe: The samples.

    Returns:
        One `LayerDiagnostics` for every local layer, or of a baseline for every module with weights, first to
        last.

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
        weights = [_weights(layer) for layer in outputs]
        flat = [weight for several in weights for weight in several]
        end_to_end = _by_weight(_final_loss(net, probe), flat)
        losses, local = _local(net, probe, flat)
    return [
        LayerDiagnostics(
            loss=losses[min(index, len(losses) - 1)],
            weight_norm=_norm(own),
            dead_units=_dead(outputs[layer]),
            cosine_margin=_margin(layer, outputs[layer], probe.target),
            alignment=_cosine([local.get(w) for w in own], [end_to_end.get(w) for w in own]),
        )
        for index, (layer, own) in enumerate(zip(outputs, weights, strict=True))
    ]


def _weights(module: nn.Module) -> list[nn.Parameter]:
    if isinstance(module, nn.Linear | nn.Conv2d):  # without a projection, which is the head's
        own = ("weight", "parametrizations.weight.original")
        return [p for name, p in module.named_parameters() if name in own]
    body = module.body if isinstance(module, SpelaBlock) else module
    return [parameter for parameter in body.parameters() if parameter.dim() >= 2]


def _outputs(net: nn.Module, probe: Probe) -> dict[nn.Module, Tensor]:
    """Output of every layer that learns, in order, with its activation and pooling."""
    found: dict[nn.Module, Tensor] = {}
    owner: nn.Module | None = None
    is_local = any(isinstance(module, LocalLayer) for module in net.children())
    x = probe.x
    if isinstance(net, _Embeds):
        x = net.embed(x, probe.target)
    with torch.no_grad():
        for module in net.children():
            x = output_of(module, x)
            if is_local:
                # A SPELA layer has its activation in it, and its scores are those of its own output.
                if isinstance(module, LocalLayer):
                    found[module] = x
            elif _weights(module):
                found[module] = x
                owner = module
            elif isinstance(module, nn.Flatten):
                owner = None
            elif owner is not None:
                found[owner] = x  # what follows a baseline's layer is part of it, up to the next
    return found


def _final_loss(net: nn.Module, probe: Probe) -> Tensor:
    """Cross-entropy () of the network's scores, with its graph."""
    last = list(net.children())[-1]
    if isinstance(last, ProjectedLayer):  # whose scores have no graph
        y = probe.x
        for module in net.children():
            y = output_of(module, y)
        return last.cross_entropy(y, probe.target)
    scale = float(getattr(last, "scale", 1.0)) if isinstance(last, LocalLayer) else 1.0
    return nn.functional.cross_entropy(scale * net(probe.x), probe.target)


def _by_weight(loss: Tensor, weights: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """The gradient of each weight that the loss depends on."""
    found = torch.autograd.grad(loss, list(weights), allow_unused=True)
    return {w: gradient for w, gradient in zip(weights, found, strict=True) if gradient is not None}


def _local(
    net: nn.Module, probe: Probe, weights: Sequence[Tensor]
) -> tuple[list[float], dict[Tensor, Tensor]]:
    """Local losses, and the gradient of each weight by which its layer learns."""
    if isinstance(net, DiagnosedByHand):
        rows = net.probe_gradients(probe.x, probe.target)
        by_weight = {weight: gradient for _, weight, gradient in rows}
        return [float(loss) for loss, _, _ in rows], by_weight
    if hasattr(net, "local_losses"):
        losses = net.local_losses(probe.x, probe.target)  # type: ignore[operator]
    else:
        losses = nn.functional.cross_entropy(net(probe.x), probe.target).reshape(1)
    return losses.detach().tolist(), _by_weight(losses.sum(), weights)


def _dead(y: Tensor) -> float:
    units = 2 if y.dim() == 3 else 1  # (B, T, E), else (B, units, ...)
    active = (y > 0).movedim(units, 0).flatten(1).any(dim=1)  # (units,)
    return float((~active).double().mean())


def _margin(layer: nn.Module, y: Tensor, target: Tensor) -> float | None:
    if not isinstance(layer, LocalLayer) or not layer.scores_are_cosines:
        return None
    cosines = layer.scores(y).detach().double()
    own = cosines.gather(1, target[:, None])
    others = cosines.scatter(1, target[:, None], -torch.inf)
    return float((own - others.max(dim=1, keepdim=True).values).mean())


def _norm(tensors: Sequence[Tensor | None]) -> float:
    """Of several tensors as one vector, without those that are missing."""
    norms = [torch.linalg.vector_norm(t.detach().double()) for t in tensors if t is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0


def _cosine(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> float | None:
    """Of two gradients of the same weights; a weight that one does not reach has the gradient zero."""
    product = _norm(first) * _norm(second)
    if not product > 0:
        return None  # one of them is zero: no direction
    return (
        math.fsum(
            float((a.double() * b.double()).sum())
            for a, b in zip(first, second, strict=True)
            if a is not None and b is not None
        )
        / product
    )
