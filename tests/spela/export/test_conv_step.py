"""The exported step of convolution layers: an inference engine trains them as eager PyTorch does."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from spela import RowNorm, SpelaBlock, SpelaConv2d, SpelaLinear, SpelaSequential
from spela.data import load_dataset
from spela.export import train_step_program, write_onnx
from spela.optim import LocalAdam, LocalSGD
from tests.spela.export.engine import Engine, assert_forward_operators_only, digit_batches

SHAPE, CLASSES = (4, 16, 15), 5

# Optimizer, its settings, and of every convolution: channels, kernels, kernel size, output size, settings.
CASES: dict[str, tuple[Any, dict[str, Any], list[tuple[Any, dict[str, Any]]]]] = {
    "nesterov": (
        LocalSGD,
        {"lr": 0.3, "momentum": 0.9, "weight_decay": 1e-3, "nesterov": True},
        [
            ((4, 6, 3, (7, 6)), {"objective": "mse"}),
            ((6, 8, 3, (3, 3)), {"objective": "log", "padding": 1, "pool": "avg", "bias": False}),
            (
                (8, 8, 3, (3, 3)),
                {"objective": "cosine", "padding": "same", "dilation": 2, "groups": 4, "pool": None,
                 "batch_norm": False},
            ),
        ],
    ),
    "adam": (
        LocalAdam,
        {"lr": 0.01, "weight_decay": 0.1},
        [
            (
                (4, 6, 3, (8, 5)),
                {"objective": "softmax", "scale": 5.0, "stride": (2, 3), "padding": 1, "groups": 2,
                 "pool": None},
            ),
            (
                (6, 8, 1, (4, 3)),
                {"objective": "euclidean", "stride": 2, "pool": None, "batch_norm": False,
                 "negative_slope": 0.1},
            ),
            ((8, 6, (1, 2), (2, 1)), {"objective": "angular", "pool_size": 2}),
        ],
    ),
    "strides before a pool": (
        LocalSGD,
        {"lr": 0.3},
        [
            ((4, 6, 3, (4, 4)), {"stride": 2, "padding": 1}),
            ((6, 8, 2, (2, 2)), {"padding": 1, "pool": "avg", "groups": 2}),
        ],
    ),
    "no-batch-norm": (
        LocalSGD,
        {"lr": 0.3},
        [((4, 6, 3, (7, 6)), {"batch_norm": False, "bias": False, "negative_slope": 0.0})],
    ),
}  # fmt: skip


def _conv(*sizes: Any, **settings: Any) -> SpelaConv2d:
    *others, output_size = sizes or (4, 2, 3, (7, 6))
    layer = SpelaConv2d(*others, CLASSES, output_size, symmetric_dim=6, **settings)
    if layer.norm is not None:  # factors of both signs, and shifts that matter
        nn.init.normal_(layer.norm.weight)
        nn.init.normal_(layer.norm.bias)
    return layer


def _net(*layers: SpelaConv2d) -> SpelaSequential:
    width = layers[-1].out_channels * math.prod(layers[-1].output_size)
    return SpelaSequential(*layers, nn.Flatten(), RowNorm(), SpelaLinear(width, 7, CLASSES))


def _same(found: dict[str, Tensor], net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Every weight, running statistic and state of the optimizer, to the last bits of float64."""
    expected = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    for name, parameter in net.named_parameters():
        kept = optimizer.state[parameter].items()
        expected |= {f"{name}.{key}": value for key, value in kept if isinstance(value, Tensor)}
    assert len(found) >= len(list(net.parameters()))
    for name, value in found.items():
        other = expected[name].detach()
        torch.testing.assert_close(value, other.to(value.dtype), rtol=0, atol=1e-10, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_steps_equal_local_steps_in_float64(case):
    torch.manual_seed(0)
    kind, hyper, layers = CASES[case]
    net = _net(*(_conv(*sizes, **settings) for sizes, settings in layers)).double()
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms[1:]:
        norm.momentum = None  # the mean of all batches
    local = kind(net.parameters(), **hyper)
    program = train_step_program(net, local, SHAPE)
    step = program.exported.module()
    weights = {name: program.defaults[name] for name, _ in net.named_parameters()}
    state = {name: v for name, v in program.defaults.items() if name not in weights}
    assert ("training" in program.inputs) == bool(norms)
    lr = torch.tensor(hyper["lr"], dtype=torch.float64)
    before = copy.deepcopy(net.state_dict())
    for count in (6, 3, 8):
        x, target = torch.randn(count, *SHAPE).double(), torch.randint(CLASSES, (count,))
        modes = {"training": torch.tensor(True)} if norms else {}
        losses, _, weights, state = step(x, target, lr, modes, weights, state)
        expected = net.local_step(x, target, local)
        torch.testing.assert_close(losses, expected, rtol=0, atol=1e-10)
    _same({**weights, **state}, net, local)
    assert any(not torch.equal(before[name], value) for name, value in weights.items())
    # And by the running statistics, which then stay.
    net.eval()
    modes = {"training": torch.tensor(False)} if norms else {}
    losses, scores, weights, state = step(x, target, lr, modes, weights, state)
    for given, eager in zip(scores, net.layer_scores(x), strict=True):
        torch.testing.assert_close(given, eager, rtol=0, atol=1e-10)
    torch.testing.assert_close(losses, net.local_step(x, target, local), rtol=0, atol=1e-10)
    _same({**weights, **state}, net, local)


def test_a_network_learns_the_digits_in_an_inference_engine(session_of, tmp_path):
    torch.manual_seed(0)
    net = SpelaSequential(
        SpelaConv2d(1, 12, 3, 10, (4, 4), padding=1, symmetric_dim=16, projection_std=0.1,
                    objective="softmax"),
        SpelaConv2d(12, 16, 3, 10, (2, 2), padding=1, groups=4, symmetric_dim=16,
                    projection_std=0.1, pool="avg", objective="softmax"),
        nn.Flatten(), RowNorm("rms"), SpelaLinear(64, 32, 10, objective="softmax"),
    )  # fmt: skip
    local = LocalSGD(net.parameters(), 0.1, momentum=0.5)
    program = train_step_program(net, local, (1, 8, 8))
    engine = Engine(session_of(program), program)
    assert_forward_operators_only(tmp_path / "program.onnx")
    nodes = onnx.load(tmp_path / "program.onnx").graph.node
    assert [node.op_type for node in nodes].count("Conv") == 4  # a forward and a gradient each
    on, off = torch.tensor(True), torch.tensor(False)
    for x, target in digit_batches(80):
        expected = net.local_step(x, target, local)
        found = engine.step(x, target, 0.1, training=on)
        torch.testing.assert_close(torch.from_numpy(found["losses"]), expected, rtol=0, atol=1e-4)
    for name, value in net.state_dict().items():
        if name in engine.carried:
            other = torch.from_numpy(engine.carried[name])
            torch.testing.assert_close(other, value, rtol=0, atol=1e-4, msg=name)
    data = load_dataset("digits")
    net.eval()
    found = engine.step(data.test_x, data.test_y, 0.0, training=off)
    for layer, eager in enumerate(net.layer_scores(data.test_x), start=1):
        other = torch.from_numpy(found[f"scores.{layer}"])
        accuracies = [float((s.argmax(1) == data.test_y).double().mean()) for s in (other, eager)]
        assert accuracies[0] == accuracies[1]
        assert accuracies[0] > 0.8  # it learnt
    one = engine.step(data.test_x[:1], data.test_y[:1], 0.0, training=off)
    np.testing.assert_allclose(one["scores.3"], found["scores.3"][:1], atol=1e-5)


def test_a_frozen_layer_stays_and_its_batch_norm_moves_on():
    torch.manual_seed(0)
    net = _net(_conv())
    net[0].requires_grad_(False)
    local = LocalSGD(net.parameters(), 0.3)
    program = train_step_program(net, local, SHAPE)
    assert "0.weight" not in program.inputs
    x, target = torch.randn(6, *SHAPE), torch.randint(CLASSES, (6,))
    weights = {name: v for name, v in program.defaults.items() if name.startswith("3.")}
    state = {name: v for name, v in program.defaults.items() if name not in weights}
    modes = {"training": torch.tensor(True)}
    step = program.exported.module()
    losses, _, weights, state = step(x, target, torch.tensor(0.3), modes, weights, state)
    torch.testing.assert_close(losses, net.local_step(x, target, local))
    torch.testing.assert_close(weights["3.weight"], net[3].weight.detach())
    torch.testing.assert_close(state["0.norm.running_var"], net[0].norm.running_var)
    assert int(state["0.norm.num_batches_tracked"]) == 1


def _with_norm(norm: nn.Module) -> SpelaConv2d:
    layer = _conv()
    layer.norm = norm  # type: ignore[assignment]
    return layer


def _hooked_norm() -> SpelaConv2d:
    layer = _conv()
    assert layer.norm is not None
    layer.norm.register_forward_hook(lambda module, args, y: -y)
    return layer


class _Halved(SpelaConv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            SpelaBlock(nn.Conv2d(4, 6, 3), CLASSES, torch.zeros(1, *SHAPE)),
            "layer 0 is a SpelaBlock: only the training step of SpelaLinear and SpelaConv2d",
        ),
        (_Halved(4, 2, 3, CLASSES, (7, 6)), "module 0 .* has a `forward` of its own"),
        (_with_norm(nn.GroupNorm(1, 2)), r"has GroupNorm\(.* as its norm"),
        (_with_norm(nn.BatchNorm2d(2, affine=False)), r"has BatchNorm2d\(.* as its norm"),
        (_hooked_norm(), "has a batch norm that has a forward hook"),
        (_conv().bfloat16(), "is in torch.bfloat16: convolutions need 32 bits"),
        (
            nn.utils.parametrizations.weight_norm(_conv()),
            "layer 0 is trained through parametrizations",
        ),
    ],
)
def test_a_step_that_would_leave_something_out_is_refused(layer, message):
    net = SpelaSequential(layer)
    with pytest.raises(ValueError, match=message):
        train_step_program(net, LocalSGD(net.parameters()), SHAPE)


def test_sizes_that_cannot_be_trained_are_refused(tmp_path):
    net = SpelaSequential(SpelaConv2d(1, 2, 3, CLASSES, (2, 2), pool=None))
    local = LocalSGD(net.parameters())
    with pytest.raises(ValueError, match=r"`output_size` is \(2, 2\)"):
        train_step_program(net, local, (1, 9, 9))
    narrow = SpelaSequential(SpelaLinear(4, 3, CLASSES).bfloat16())
    program = train_step_program(narrow, LocalSGD(narrow.parameters()), (4,))
    with pytest.raises(ValueError, match=r"bfloat16 have no ONNX file here: call float\(\)"):
        write_onnx(program, tmp_path / "step.onnx")
    assert not list(tmp_path.iterdir())
