"""A fused step beside what it stands for: a plain loss, its backward and torch's optimizer."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from spela import SpelaSequential, optim


def check_layer_steps(
    layers: tuple[Any, Any],
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
    x: Tensor,
    target: Tensor,
    rtol: float,
) -> None:
    """Three steps, fused on the first layer: equal losses, outputs and states (to 10 rtol) after them."""
    (fused, plain), (ours, theirs) = layers, optimizers
    for _ in range(3):
        loss, y = fused.local_step(x, target, ours)
        theirs.zero_grad()
        expected, output = plain.local_loss(x, target)
        expected.backward()
        theirs.step()
        torch.testing.assert_close(loss, expected.detach(), rtol=rtol, atol=1e-12)
        torch.testing.assert_close(y, output, rtol=rtol, atol=1e-12)
        assert all(p.grad is None for p in fused.parameters())
    _check_states(fused, plain, 10 * rtol)


def check_network_steps(fused: SpelaSequential, x: Tensor, target: Tensor, rtol: float) -> None:
    """Three fused steps of a network, and as many of a copy by its summed losses and torch's SGD."""
    plain = copy.deepcopy(fused)
    ours = optim.LocalSGD(fused.parameters(), lr=0.5)
    theirs = torch.optim.SGD(plain.parameters(), lr=0.5)
    for _ in range(3):
        losses = fused.local_step(x, target, ours)
        theirs.zero_grad()
        expected = plain.local_losses(x, target)
        expected.sum().backward()
        theirs.step()
        torch.testing.assert_close(losses, expected.detach(), rtol=rtol, atol=1e-12)
    _check_states(fused, plain, 10 * rtol)


def _check_states(fused: Any, plain: Any, rtol: float) -> None:
    expected = plain.state_dict()
    for name, value in fused.state_dict().items():
        torch.testing.assert_close(
            value,
            expected[name],
            rtol=rtol,
            atol=1e-3 * rtol,
            msg=lambda message, name=name: f"{name}: {message}",
        )
