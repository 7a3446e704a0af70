"""Whole steps in one compiled call against the reference in float64, layer by layer and batch by batch."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import spela_kernels as sk
from spela import SpelaLinear
from spela.benchmarks.memory import peak_bytes
from spela.optim import LocalSGD
from spela_kernels.contracts import Settings
from spela_kernels.linear import reference, steps
from spela_kernels.linear.types import NO_BUFFERS, Call, Parameters
from spela_kernels.rules import AdamRule, SgdRule, Step, rates_of

pytestmark = pytest.mark.skipif(not steps.is_built(), reason="the passes were not built")

RULES = {
    "sgd": SgdRule(),
    "decayed": SgdRule(weight_decay=0.1),
    "momentum": SgdRule(0.9, 0.1),
    "nesterov": SgdRule(0.9, 0.1, nesterov=True),
    "adam": AdamRule(0.8, 0.9, 1e-3, 0.1),
}
RATE = 0.25


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


def _stack(
    sizes: list[int], classes: int, settings: Settings, rule: Any, norm: bool, bias: bool
) -> list[steps.Planned]:
    g = torch.Generator().manual_seed(5)
    layers = []
    for inputs, outputs in pairwise(sizes):
        weight = torch.randn(outputs, inputs, generator=g) / math.sqrt(inputs)
        params = Parameters(weight, torch.randn(outputs, generator=g) if bias else None, None)
        zeros = tuple(None if p is None else torch.zeros_like(p) for p in params)
        again = tuple(None if p is None else torch.zeros_like(p) for p in params)
        keeps = isinstance(rule, AdamRule) or rule.momentum > 0
        layers.append(
            steps.Planned(
                params,
                _unit(torch.randn(classes, outputs, generator=g)),
                settings,
                rule,
                zeros if keeps else NO_BUFFERS,
                again if isinstance(rule, AdamRule) else NO_BUFFERS,
                math.sqrt(inputs) if norm and layers else 0.0,
            )
        )
    return layers


def _wide(tensors: Any) -> Any:
    return tuple(None if t is None else t.double() for t in tensors)


def _by_reference(
    layers: list[steps.Planned], x: Tensor, target: Tensor, batch_size: int
) -> tuple[list[Parameters], Tensor]:
    """The parameters after the steps, and the losses, in float64."""
    wide = [
        layer._replace(
            params=Parameters(*_wide(layer.params)),
            vectors=layer.vectors.double(),
            first=_wide(layer.first),
            second=_wide(layer.second),
        )
        for layer in layers
    ]
    losses = []
    for number, (rows, labels) in enumerate(
        zip(x.double().split(batch_size), target.split(batch_size), strict=True), start=1
    ):
        for layer in wide:
            if layer.norm:
                rows = rows / rows.norm(dim=1, keepdim=True) * layer.norm
            call = Call(rows, layer.params, layer.vectors, labels, layer.settings)
            lr, count = torch.tensor(RATE).double(), torch.tensor(float(number)).double()
            loss, rows = reference.step_(
                call, Step(layer.rule, lr, layer.first, layer.second, count)
            )
            losses.append(loss)
    return [layer.params for layer in wide], torch.stack(losses).reshape(-1, len(wide))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("objective", ["log", "cosine", "angular", "euclidean", "mse", "softmax"])
@pytest.mark.parametrize(
    ("widths", "classes", "samples", "batch_size"),
    [([7, 20, 33, 6], 5, 23, 10), ([70, 9, 65], 12, 40, 40), ([3, 100], 2, 3, 1)],
)
def test_steps_are_those_of_the_reference(
    widths: list[int],
    classes: int,
    samples: int,
    batch_size: int,
    objective: str,
    rule: str,
    bias: bool,
) -> None:
    settings = Settings("leaky_relu", 0.1, objective, 7.0)
    layers = _stack(widths, classes, settings, RULES[rule], norm=True, bias=bias)
    g = torch.Generator().manual_seed(1)
    x, target = (
        torch.randn(samples, widths[0], generator=g),
        torch.randint(classes, (samples,), generator=g),
    )
    expected, expected_losses = _by_reference(layers, x, target, batch_size)
    assert all(steps.fits(layer, batch_size) for layer in layers)
    rates = [
        rates_of(layer.rule, RATE, number)
        for number in range(1, -(-samples // batch_size) + 1)
        for layer in layers
    ]
    sizes = [len(batch) for batch in x.split(batch_size)]
    losses, _ = steps.run(layers, x, target, sizes, rates)
    torch.testing.assert_close(losses.double(), expected_losses, rtol=2e-5, atol=2e-5)
    for layer, params in zip(layers, expected, strict=True):
        for name, ours, theirs in zip(params._fields, layer.params, params, strict=True):
            if ours is not None:
                torch.testing.assert_close(ours.double(), theirs, rtol=2e-4, atol=2e-5, msg=name)


@pytest.mark.parametrize("activation", ["leaky_relu", "identity", "relu", "gelu"])
@pytest.mark.parametrize("objective", ["log", "softmax"])
def test_activations_are_those_of_the_reference(activation: str, objective: str) -> None:
    settings = Settings(activation, 0.1, objective, 7.0)
    layers = _stack([9, 40, 24], 7, settings, RULES["adam"], norm=True, bias=True)
    g = torch.Generator().manual_seed(2)
    x, target = 3 * torch.randn(30, 9, generator=g), torch.randint(7, (30,), generator=g)
    expected, expected_losses = _by_reference(layers, x, target, 30)
    rates = [rates_of(layer.rule, RATE, 1) for layer in layers]
    losses, _ = steps.run(layers, x, target, [30], rates)
    torch.testing.assert_close(losses.double(), expected_losses, rtol=2e-5, atol=2e-5)
    for layer, params in zip(layers, expected, strict=True):
        for ours, theirs in zip(layer.params[:2], params[:2], strict=True):
            assert ours is not None
            torch.testing.assert_close(ours.double(), theirs, rtol=2e-4, atol=2e-5)


def test_gelu_is_torch_s_to_rounding() -> None:
    z = torch.cat(
        [torch.linspace(-12, 12, 997), torch.tensor([0.0, 1e-20, -1e-20, 30.0, -30.0, 1e30])]
    )
    layer = steps.Planned(
        Parameters(torch.eye(len(z)), None, None),
        torch.eye(len(z))[:2],
        Settings("gelu", objective="cosine"),
        SgdRule(),
        NO_BUFFERS,
        NO_BUFFERS,
    )
    _, y = steps.run([layer], z[None], torch.tensor([0]), [1], [(0.0, 0.0)])
    torch.testing.assert_close(y[0], torch.nn.functional.gelu(z), rtol=1e-6, atol=1e-6)


def test_the_output_is_that_of_the_last_batch_before_its_update() -> None:
    settings = Settings("identity", objective="cosine")
    (layer,) = _stack([4, 8], 3, settings, SgdRule(), norm=False, bias=True)
    x, target = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    weight, bias, _ = layer.params
    before = torch.nn.functional.linear(x[3:], weight, bias)
    _, y = steps.run([layer], x, target, [3, 2], [(0.0, 0.0), (0.5, 0.0)])
    torch.testing.assert_close(y, before)
    assert not torch.allclose(torch.nn.functional.linear(x[3:], weight, bias), before)


@pytest.mark.parametrize("value", [0.0, 1e-20, 1e20, float("nan"), float("inf")])
def test_norms_of_extreme_rows_are_those_of_torch(value: float) -> None:
    x = torch.full((2, 70), 1.5)
    x[0, 3] = value
    if value in (0.0, 1e-20):
        x[0] = value
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12)
    assert steps.norm_fits(x)
    torch.testing.assert_close(steps.norm_rows(x, 3.0), x * (3.0 / length), equal_nan=True)


def test_nan_in_a_sample_reaches_the_loss() -> None:
    for objective in ("log", "softmax"):
        settings = Settings(objective=objective)
        (layer,) = _stack([4, 8], 3, settings, SgdRule(), norm=False, bias=True)
        x = torch.ones(2, 4)
        x[1, 2] = float("nan")
        losses, _ = steps.run([layer], x, torch.tensor([0, 1]), [2], [(0.1, 0.0)])
        assert losses.isnan().all()


# 150 classes: enough for the threads to share the products with their vectors.
@pytest.mark.parametrize("classes", [7, 150])
def test_threads_do_not_change_a_bit(classes: int) -> None:
    before, results = torch.get_num_threads(), []
    g = torch.Generator().manual_seed(3)
    x, target = torch.randn(260, 300, generator=g), torch.randint(classes, (260,), generator=g)
    for count in (1, 2, 3):
        layers = _stack(
            [300, 301, 20],
            classes,
            Settings("gelu", objective="softmax"),
            RULES["adam"],
            True,
            True,
        )
        torch.set_num_threads(count)
        rates = [rates_of(layer.rule, RATE, step) for step in (1, 2) for layer in layers]
        try:
            losses, y = steps.run(layers, x, target, [130, 130], rates)
        finally:
            torch.set_num_threads(before)
        weights = [layer.params.weight.flatten() for layer in layers]
        results.append(torch.cat([losses.flatten(), y.flatten(), *weights]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_forked_process_waits_for_no_threads_of_its_parent() -> None:
    code = """
import os, torch
from spela import SpelaLinear, SpelaSequential, optim
torch.set_num_threads(2)
net = SpelaSequential(SpelaLinear(300, 300, 5))
optimizer = optim.LocalSGD(net.parameters(), lr=0.1)
x, target = torch.ones(64, 300), torch.arange(64) % 5  # enough for both threads
net.local_step(x, target, optimizer)
child = os.fork()
if child == 0:
    os._exit(0 if net.local_step(x, target, optimizer).isfinite().all() else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.stdout.strip() == "0", done.stderr


def test_scratch_memory_is_of_torch_which_counts_it() -> None:
    (layer,) = _stack([64, 96], 3, Settings(), SgdRule(), norm=False, bias=True)
    x, target = torch.ones(50, 64), torch.arange(50) % 3
    taken = peak_bytes(lambda: steps.run([layer], x, target, [50], [(0.1, 0.0)]))
    packed_rows = 4 * 50 * (64 + 96)
    assert taken > packed_rows + 2 * 4 * 50 * 96  # and the gradient and the outputs


def test_what_does_not_fit() -> None:
    settings = Settings()
    (layer,) = _stack([4, 8], 3, settings, SgdRule(), norm=False, bias=True)
    assert steps.fits(layer, 2)
    weight, bias, _ = layer.params
    others = [
        layer._replace(settings=Settings("tanh")),
        layer._replace(params=Parameters(weight.double(), bias, None)),
        layer._replace(params=Parameters(weight, bias, torch.ones(1))),
        layer._replace(params=Parameters(weight[:4], None, None)),  # fewer outputs than a tile
        layer._replace(first=(torch.ones(8, 8)[:, ::2], None, None)),
    ]
    assert not any(steps.fits(other, 2) for other in others)
    assert not steps.fits(layer, steps.LARGEST)
    x, target = torch.ones(1, 4), torch.tensor([0])
    with torch.device("meta"):  # where new tensors go changes nothing
        losses, _ = steps.run([layer], x, target, [1], [(0.1, 0.0)])
    assert losses.device.type == "cpu"


@pytest.mark.parametrize("height", [-3e38, -1e20, -14.0, -13.0, 3e38])
def test_the_slope_of_gelu_far_out(height: float) -> None:
    found = []
    for name in ("cpu", "reference"):
        layer = SpelaLinear(2, 6, 3, activation="gelu", objective="cosine",
                            generator=torch.Generator().manual_seed(0))  # fmt: skip
        with torch.no_grad():
            layer.bias[0] = height
        with sk.use_backend(name):
            layer.local_step(
                torch.tensor([[1.0, 2.0]]), torch.tensor([0]), LocalSGD(layer.parameters(), 1.0)
            )
        found.append(layer.weight.detach())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
