"""Inference as a program: one batch in, the class scores of every layer out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spela.distributed.data_parallel import DataParallelSequential
from spela.export.program import (
    Program,
    batch_axis,
    copied,
    example_batch,
    trace,
)
from spela.layers import LocalLayer
from spela.layers.modes import in_eval_mode, output_of
from spela.layers.plain import departure
from spela.layers.projected import ProjectedLayer
from spela.network import SpelaSequential
from spela_kernels.contracts import Settings
from spela_kernels.projection import reference as projection
from spela_kernels.projection.types import Call

__all__ = ["inference_program", "layer_scores"]


def layer_scores(layer: LocalLayer, y: Tensor) -> Tensor:
    """`layer.scores(y)` in plain torch operations, which every exporter knows.

    Args:
        layer: A SPELA layer.
        y: (B, ...) its output.

    Returns:
        (B, C) scores.
    """
    if isinstance(layer, ProjectedLayer) and type(layer).scores is ProjectedLayer.scores:
        return projection.scores(Call(*layer.head_input(y), None, Settings()))
    return layer.scores(y)


class _Scores(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, weights: dict[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        if weights:
            named = {f"net.{name}": value for name, value in weights.items()}
            return torch.func.functional_call(self, named, (x,))
        if not isinstance(self.net, SpelaSequential):
            return tuple(self.net.layer_scores(x))  # type: ignore[operator]
        scores = []
        for module in self.net:
            x = output_of(module, x)
            if isinstance(module, LocalLayer):
                scores.append(layer_scores(module, x))
        return tuple(scores)


def inference_program(
    net: nn.Module,
    sample_shape: tuple[int, ...],
    *,
    batch_size: int | None = None,
    weights_as_inputs: bool = False,
    facts: dict[str, Any] | None = None,
) -> Program:
    """Trace a network in eval mode.

    The outputs `scores.1` ... `scores.L` are one (B, C) tensor a layer: the last is what `net(x)`
    gives, and a caller that stops at the first layer whose best score leads by a threshold has early
    exit's labels.

    With `weights_as_inputs` the parameters and the batch norms' running statistics are inputs under the names
    that a training step gives them, with their present values as defaults: so it answers with weights
    that a step has reached.

    Args:
        net: A `SpelaSequential`, or a baseline with `layer_scores`.
        sample_shape: Shape of one input.
        batch_size: None for any batch; a number for runtimes that want a fixed one.
        weights_as_inputs: Whether a caller may feed the weights.
        facts: Plain JSON values to keep with the program.

    Returns:
        A `Program` with the input `x` (B, *sample_shape), as `spela.data.prepare` makes it.

    Raises:
        ValueError: If the batch size is not positive, the network has no parameters or computes some from
            others (pruning), or a subclass's `forward` or a hook of the network itself would be left out.

    Example:
        >>> from spela.layers import SpelaLinear
        >>> net = SpelaSequential(SpelaLinear(4, 8, 3), SpelaLinear(8, 8, 3))
        >>> inference_program(net, (4,)).outputs
        ('scores.1', 'scores.2')
    """
    if next(net.parameters(), None) is None:
        raise ValueError("`net` has no parameters: there is nothing to export")
    known = isinstance(net, SpelaSequential)
    why = departure(net, SpelaSequential, learns=False) if known else ""
    answers = (SpelaSequential.layer_scores, DataParallelSequential.layer_scores)
    if known and not why and getattr(net.layer_scores, "__func__", None) not in answers:
        why = "has a `layer_scores` of its own, which would be left out"
    if why:
        raise ValueError(f"`net` ({type(net).__name__}) {why}")
    axis = batch_axis(batch_size)
    x = example_batch(net, sample_shape, batch_size)
    with in_eval_mode(net), torch.no_grad():
        module = _Scores(copied(net)).eval()  # with the weights of now
        layers = len(module(x))
        weights = _weights(net) if weights_as_inputs else {}
        # A program without them has one argument, which `exported.module()(x)` gives it.
        given: tuple[Any, ...] = (x, weights) if weights_as_inputs else (x,)
        axes = (axis, dict.fromkeys(weights))[: len(given)]
        exported = trace(module, given, axes)
    return Program(
        exported,
        ("x", *weights),
        tuple(f"scores.{layer}" for layer in range(1, layers + 1)),
        defaults=weights,
        facts={"what": "inference", **(facts or {})},
    )


def _weights(net: nn.Module) -> dict[str, Tensor]:
    """What training moves: parameters, and the running moments of batch norms."""
    moments = {
        k: v for k, v in net.named_buffers() if k.endswith((".running_mean", ".running_var"))
    }
    return {k: v.detach().clone() for k, v in (dict(net.named_parameters()) | moments).items()}
