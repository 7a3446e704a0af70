"""A training step as a program: data, weights and optimizer state in, the new ones out.

A SPELA step is forward algebra: every layer's gradient is a closed form of its own forward. So the step
is a pure function without autograd, and an engine that can only run networks forward can train with it.
The mathematics is the reference's; its updates in place act on copies, which tracing turns into values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from spela.export.inference import layer_scores
from spela.export.program import (
    Program,
    batch_axis,
    example_batch,
    without_paths,
)
from spela.export.updates import Update, optimizer_state, update_of
from spela.layers import Frozen, LocalLayer, SpelaLinear
from spela.layers.modes import in_eval_mode
from spela.layers.plain import departure
from spela.network import SpelaSequential
from spela_kernels.contracts import Settings
from spela_kernels.linear import Parameters, reference
from spela_kernels.linear.types import Call

__all__ = ["train_step_program"]

Tensors = dict[str, Tensor]


class _Step(nn.Module):
    """(x, target, lr, masks, weights, state) -> (losses, scores, new weights, new state)."""

    def __init__(self, net: SpelaSequential, update: Update) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(dict(net.named_children()))
        self.update = update

    def forward(
        self,
        x: Tensor,
        target: Tensor,
        lr: Tensor,
        masks: Tensors,
        weights: Tensors,
        state: Tensors,
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensors, Tensors]:
        weights = {name: value.clone() for name, value in weights.items()}
        state = {name: value.clone() for name, value in state.items()}
        losses, scores = [], []
        for name, module in self.parts.items():
            if f"mask.{name}" in masks:
                x = x * masks[f"mask.{name}"]
            elif isinstance(module, SpelaLinear):
                loss, x, gradients = _linear_gradients(module, name, x, target, weights)
                losses.append(loss)
                scores.append(layer_scores(module, x))
                for key, gradient in gradients.items():
                    if key in weights:  # not a frozen one
                        self.update(key, weights[key], gradient, state, lr)
            else:
                x = module(x)
        return torch.stack(losses), tuple(scores), weights, state


def _linear_gradients(
    layer: SpelaLinear, name: str, x: Tensor, target: Tensor, weights: Tensors
) -> tuple[Tensor, Tensor, Tensors]:
    """Loss (), output (B, O) and the gradient of each of the layer's parameters, by name."""
    names = [f"{name}.{field}" for field in Parameters._fields]
    own = Parameters(*(weights.get(key, getattr(layer, key.split(".")[-1])) for key in names))
    settings = Settings(layer.activation, layer.negative_slope, layer.objective, layer.scale)
    call = Call(x, own, layer.vectors, target, settings)
    saved = reference.forward(call)
    gradients = reference.backward(call, saved)
    found = {key: g for key, g in zip(names, gradients, strict=True) if g is not None}
    return saved.loss, saved.y, found


def _check(net: nn.Module) -> SpelaSequential:
    if not isinstance(net, SpelaSequential):
        raise ValueError(
            f"only a SPELA network has a training step without autograd, got {type(net).__name__}: "
            "export its inference"
        )
    why = departure(net, SpelaSequential)
    if why:
        raise ValueError(f"`net` ({type(net).__name__}) {why}")
    for name, module in net.named_children():
        if isinstance(module, LocalLayer) and not isinstance(module, SpelaLinear):
            raise ValueError(
                f"layer {name} is a {type(module).__name__}: the training step of linear layers only "
                "can be exported; export the network's inference"
            )
        own = (
            {key for key, _ in module.named_parameters()}
            if isinstance(module, LocalLayer)
            else set()
        )
        if not own <= set(Parameters._fields):
            raise ValueError(
                f"layer {name} is trained through {', '.join(sorted(own - set(Parameters._fields)))}: only "
                "plain weights, biases and slopes have an exportable step"
            )
        why = _left_out(module)
        if why:
            raise ValueError(f"module {name} ({type(module).__name__}) {why}")
    if not any(isinstance(module, LocalLayer) for module in net):
        raise ValueError("`net` has no SPELA layer: there is nothing to train")
    return net


def _left_out(module: nn.Module) -> str:
    """What of a module's behaviour in training the exported step would not have; empty: nothing."""
    for kind in (SpelaLinear, nn.Dropout):
        if isinstance(module, kind):
            return departure(module, kind)
    inner = () if isinstance(module, Frozen) else module.modules()
    other = next((type(m).__name__ for m in inner if isinstance(m, _DropoutNd)), "")
    return other and f"drops out by {other}: list an nn.Dropout in the network itself instead"


def _mask_shapes(net: SpelaSequential, x: Tensor) -> dict[str, tuple[int, ...]]:
    """Shape of one sample at every dropout, by the name of the mask that replaces it."""
    shapes = {}
    for name, module in net.named_children():
        if isinstance(module, nn.Dropout) and module.p > 0:
            shapes[f"mask.{name}"] = tuple(x.shape[1:])
        x = module(x)
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

    Inputs, by name: `x` (B, *sample_shape), `target` (B,) int64, `lr` (), one `mask.M` (B, ...) for
    every dropout module M, then every trained parameter under its name in the network and the
    optimizer's state as `PARAMETER.exp_avg` and so on. Weights and state have their present values as
    defaults. Outputs: `losses` (L,), `scores.1` ... `scores.L` (B, C), and every weight and state tensor
    again as `new.NAME`. Losses and scores are from before the update, so the scores of a batch with
    masks of ones are the network's answer.

    A function has no randomness of its own: a mask multiplies its module's input, and is 0 with
    probability p (in the facts) and 1 / (1 - p) otherwise. Modules between the layers run in eval mode.

    Args:
        net: A `SpelaSequential` of linear layers; parameters that need no gradient are frozen.
        optimizer: `LocalSGD` or `LocalAdam` over the network's parameters.
        sample_shape: Shape of one input.
        batch_size: None for any batch; a number for runtimes that want a fixed one.
        facts: Plain JSON values to keep with the program.

    Returns:
        A `Program`.

    Raises:
        ValueError: If a layer or the optimizer has no exportable step, or the batch size is not positive.

    Example:
        >>> net = SpelaSequential(SpelaLinear(4, 8, 3, bias=False))
        >>> from spela.optim import LocalSGD
        >>> program = train_step_program(net, LocalSGD(net.parameters(), momentum=0.9), (4,))
        >>> program.inputs
        ('x', 'target', 'lr', '0.weight', '0.weight.momentum_buffer')
        >>> program.outputs
        ('losses', 'scores.1', 'new.0.weight', 'new.0.weight.momentum_buffer')
    """
    net = _check(net)
    update = update_of(optimizer)
    parameters = {
        f"{name}.{key}": parameter
        for name, module in net.named_children()
        if isinstance(module, LocalLayer)
        for key, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    weights = {name: parameter.detach() for name, parameter in parameters.items()}
    state = optimizer_state(optimizer, update, parameters)
    axis = batch_axis(batch_size)
    x = example_batch(sample_shape, batch_size, next(net.parameters()))
    target = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    with in_eval_mode(net), torch.no_grad():
        shapes = _mask_shapes(net, x)
        masks = {name: torch.ones((len(x), *shape)).to(x) for name, shape in shapes.items()}
        exported = torch.export.export(
            _Step(net, update),
            (x, target, torch.tensor(0.1).to(x), masks, weights, state),
            dynamic_shapes=(
                axis,
                axis,
                None,
                dict.fromkeys(masks, axis),
                dict.fromkeys(weights),
                dict.fromkeys(state),
            ),
        ).run_decompositions()
    carried = (*weights, *state)
    layers = range(1, len(net.local_layers) + 1)
    return Program(
        without_paths(exported),
        ("x", "target", "lr", *masks, *carried),
        ("losses", *(f"scores.{layer}" for layer in layers), *(f"new.{name}" for name in carried)),
        defaults={**weights, **state},
        facts={
            "what": "train-step",
            "optimizer": update.name,
            "rule": update.rule._asdict(),
            "dropout": {name: net.get_submodule(name.removeprefix("mask.")).p for name in masks},
            **(facts or {}),
        },
    )
