"""A training step as a program: data, weights and optimizer state in, the new ones out.

A SPELA step is forward algebra: every layer's gradient is a closed form of its own forward. So the step
is a pure function without autograd, and an engine that can only run networks forward can train with it.
The mathematics is the reference's; its updates in place act on copies, which tracing turns into values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spela.export.conv_step import conv_step
from spela.export.inference import layer_scores
from spela.export.program import (
    Program,
    batch_axis,
    copied,
    example_batch,
    trace,
)
from spela.export.step_checks import check_network
from spela.export.updates import Update, optimizer_state, update_of
from spela.layers import LocalLayer, SpelaConv2d, SpelaLinear
from spela.layers.modes import output_of, probing
from spela.layers.plain import parts_of
from spela.layers.steps import check_step
from spela.network import SpelaSequential
from spela_kernels.contracts import Settings
from spela_kernels.linear import Parameters, reference
from spela_kernels.linear.types import Call

__all__ = ["train_step_program"]

Tensors = dict[str, Tensor]


class _Step(nn.Module):
    """(x, target, lr, modes, weights, state) -> (losses, scores, new weights, new state)."""

    def __init__(self, net: SpelaSequential, update: Update) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts_of(net))
        self.update = update

    def forward(
        self,
        x: Tensor,
        target: Tensor,
        lr: Tensor,
        modes: Tensors,
        weights: Tensors,
        state: Tensors,
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensors, Tensors]:
        weights = {name: value.clone() for name, value in weights.items()}
        state = {name: value.clone() for name, value in state.items()}
        training = modes.get("training", torch.ones((), dtype=torch.bool, device=x.device))
        losses, scores = [], []
        for name, module in self.parts.items():
            if f"mask.{name}" in modes:
                x = x * modes[f"mask.{name}"]
                continue
            if not isinstance(module, (SpelaConv2d, SpelaLinear)):
                x = output_of(module, x)
                continue
            own = {
                key: weights.get(f"{name}.{key}", value)  # not there: a frozen one
                for key, value in module.named_parameters()
            }
            if isinstance(module, SpelaConv2d):
                statistics = {key: state[f"{name}.{key}"] for key in _statistics(module)}
                loss, x, answer, gradients = conv_step(module, own, statistics, training, x, target)
            else:
                loss, x, answer, gradients = _linear_step(module, own, x, target)
            losses.append(loss)
            scores.append(answer)
            for key, gradient in gradients.items():
                if f"{name}.{key}" in weights:
                    self.update(f"{name}.{key}", own[key], gradient, state, lr)
        return torch.stack(losses), tuple(scores), weights, state


def _linear_step(
    layer: SpelaLinear, own: Tensors, x: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensors]:
    """Loss (), output (B, O), scores (B, C) and the gradient of each of the layer's parameters."""
    parameters = Parameters(own["weight"], own.get("bias"), own.get("slope"))
    settings = Settings(layer.activation, layer.negative_slope, layer.objective, layer.scale)
    call = Call(x, parameters, layer.vectors, target, settings)
    saved = reference.forward(call)
    gradients = reference.backward(call, saved)._asdict()
    return saved.loss, saved.y, layer_scores(layer, saved.y), {key: gradients[key] for key in own}


def _statistics(layer: LocalLayer) -> Tensors:
    """What the batch norm of a convolution layer keeps of the batches, by name in the layer."""
    return {key: value for key, value in layer.named_buffers() if key.startswith("norm.")}


def _mask_shapes(net: SpelaSequential, x: Tensor) -> dict[str, tuple[int, ...]]:
    """Shape of one sample at every dropout, by the name of the mask that replaces it."""
    shapes = {}
    for name, module in parts_of(net).items():
        if isinstance(module, nn.Dropout) and module.p > 0:
            shapes[f"mask.{name}"] = tuple(x.shape[1:])
        x = output_of(module, x)
    return shapes


def train_step_program(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    sample_shape: tuple[int, ...],
    *,
    batch_size: int | None = None,
    facts: dict[str, Any] | None = None,
) -> Program:
    """Trace one `net.local_step` as a pure function.

    Inputs, by name: `x` (B, *sample_shape), `target` (B,) int64, `lr` (), `training` () bool if layers
    have batch norms, one `mask.M` (B, ...) for every dropout module M, then every trained parameter under
    its name in the network, the optimizer's state as `PARAMETER.exp_avg` and so on, and the batch norms'
    running statistics. Weights and state have their present values as defaults. Outputs: `losses` (L,),
    `scores.1` ... `scores.L` (B, C), and every weight and state tensor again as `new.NAME`. Losses and
    scores are from before the update, so the scores of a batch with `training` false and masks of ones
    are the network's answer.

    A function has no modes and no randomness of its own. Batch norms take the batch's own moments and move
    their running statistics where `training` is true, and take the running ones where it is false; a mask
    multiplies its module's input, and is 0 with probability p (in the facts) and 1 / (1 - p) otherwise.
    Modules between the layers run in eval mode.

    Args:
        net: A `SpelaSequential` of `SpelaLinear` and `SpelaConv2d` layers; parameters that need no
            gradient are frozen.
        optimizer: `LocalSGD` or `LocalAdam` over the network's parameters.
        sample_shape: Shape of one input.
        batch_size: None for any batch; a number for runtimes that want a fixed one.
        facts: Plain JSON values to keep with the program.

    Returns:
        A `Program`.

    Raises:
        ValueError: If `net.local_step` would refuse network or optimizer, a layer or the optimizer has no
            exportable step, or the batch size is not positive.

    Example:
        >>> net = SpelaSequential(SpelaLinear(4, 8, 3, bias=False))
        >>> from spela.optim import LocalSGD
        >>> program = train_step_program(net, LocalSGD(net.parameters(), momentum=0.9), (4,))
        >>> program.inputs
        ('x', 'target', 'lr', '0.weight', '0.weight.momentum_buffer')
        >>> program.outputs
        ('losses', 'scores.1', 'new.0.weight', 'new.0.weight.momentum_buffer')
    """
    net = check_network(net)
    check_step(net.local_layers, optimizer)
    update = update_of(optimizer)
    layers = {name: part for name, part in parts_of(net).items() if isinstance(part, LocalLayer)}
    parameters = {
        f"{name}.{key}": parameter
        for name, layer in layers.items()
        for key, parameter in layer.named_parameters()
        if parameter.requires_grad
    }
    weights = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    statistics = {
        f"{name}.{key}": value
        for name, layer in layers.items()
        for key, value in _statistics(layer).items()
    }
    state = optimizer_state(optimizer, update, parameters) | statistics
    state = {name: value.clone() for name, value in state.items()}
    axis = batch_axis(batch_size)
    x = example_batch(net, sample_shape, batch_size)
    target = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    with probing(net), torch.no_grad():
        shapes = _mask_shapes(net, x)
        masks = {name: torch.ones((len(x), *shape)).to(x) for name, shape in shapes.items()}
        training = {"training": torch.ones_like(target[0], dtype=torch.bool)} if statistics else {}
        exported = trace(
            _Step(copied(net), update),  # what is frozen stays as it is now
            (x, target, torch.tensor(0.1).to(x), {**training, **masks}, weights, state),
            (
                axis,
                axis,
                None,
                {**dict.fromkeys(training), **dict.fromkeys(masks, axis)},
                dict.fromkeys(weights),
                dict.fromkeys(state),
            ),
        )
    carried = (*weights, *state)
    return Program(
        exported,
        ("x", "target", "lr", *training, *masks, *carried),
        (
            "losses",
            *(f"scores.{layer}" for layer in range(1, len(layers) + 1)),
            *(f"new.{name}" for name in carried),
        ),
        defaults={**weights, **state},
        facts={
            "what": "train-step",
            "optimizer": update.name,
            "rule": update.rule._asdict(),
            "dropout": {name: net.get_submodule(name.removeprefix("mask.")).p for name in masks},
            **(facts or {}),
        },
    )
