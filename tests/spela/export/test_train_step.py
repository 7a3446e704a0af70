"""The exported training step: a plain inference engine trains as eager PyTorch does."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spela import RowNorm, SpelaLinear, SpelaSequential
from spela.baselines import BackpropSequential
from spela.data import load_dataset
from spela.export import inference_program, train_step_program, write_pt2
from spela.optim import LocalAdam, LocalSGD
from spela_kernels import ACTIVATIONS, OBJECTIVES
from tests.spela.export.engine import Engine, assert_forward_operators_only, digit_batches

# Optimizer, its settings, the layers' settings: each learns something of the digits in 100 steps.
CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "sgd-softmax-gelu": (
        LocalSGD,
        {"lr": 0.1},
        {"objective": "softmax", "activation": "gelu"},
    ),
    "sgd-log": (LocalSGD, {"lr": 5.0}, {"objective": "log"}),
    "momentum-angular-prelu": (
        LocalSGD,
        {"lr": 0.5, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": True},
        {"objective": "angular", "activation": "prelu"},
    ),
    "adam-softmax-gelu": (
        LocalAdam,
        {"lr": 2e-3},
        {"objective": "softmax", "activation": "gelu"},
    ),
}


def _net(dropout: float = 0.0, **settings: Any) -> SpelaSequential:
    return SpelaSequential(
        nn.Flatten(),
        RowNorm("rms"),
        SpelaLinear(64, 48, 10, **settings),
        RowNorm("rms"),
        nn.Dropout(dropout),
        SpelaLinear(48, 40, 10, **settings),
    )


def _assert_same_weights(net: nn.Module, carried: dict[str, np.ndarray], atol: float) -> None:
    for name, parameter in net.named_parameters():
        other = torch.from_numpy(carried[name])
        torch.testing.assert_close(other, parameter.detach(), rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_a_hundred_steps_on_digits_match_eager_training(case, session_of, tmp_path):
    torch.manual_seed(0)
    kind, hyper, settings = CASES[case]
    net = _net(**settings)
    local = kind(net.parameters(), **hyper)
    lr = hyper["lr"]
    program = train_step_program(net, local, (1, 8, 8))
    start = {name: value.clone() for name, value in net.state_dict().items()}
    engine = Engine(session_of(program), program)
    assert_forward_operators_only(tmp_path / "program.onnx")
    for step, (x, target) in enumerate(digit_batches(100)):
        rate = lr * (1 - step / 200)  # a schedule
        expected = net.local_step(x, target, _at(local, rate))
        found = engine.step(x, target, rate)
        torch.testing.assert_close(torch.from_numpy(found["losses"]), expected, rtol=0, atol=1e-4)
    assert any(not torch.equal(start[n], p) for n, p in net.named_parameters())
    _assert_same_weights(net, engine.carried, 1e-4)
    data = load_dataset("digits")
    net.eval()
    scores = engine.step(data.test_x, data.test_y, 0.0)  # another batch size
    for layer, eager in enumerate(net.layer_scores(data.test_x), start=1):
        other = torch.from_numpy(scores[f"scores.{layer}"])
        torch.testing.assert_close(other, eager, rtol=0, atol=1e-4)
        accuracies = [float((s.argmax(1) == data.test_y).double().mean()) for s in (other, eager)]
        assert accuracies[0] == accuracies[1]
    assert accuracies[0] > 0.3  # it learnt


def _at(optimizer: torch.optim.Optimizer, lr: float) -> torch.optim.Optimizer:
    optimizer.param_groups[0]["lr"] = lr
    return optimizer


class _Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mask = torch.ones(())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


def test_every_activation_and_objective_matches(session_of):
    torch.manual_seed(0)
    pairs = zip(ACTIVATIONS, itertools.cycle(OBJECTIVES))
    layers = [
        SpelaLinear(16, 16, 10, activation=a, objective=o, bias=a != "tanh") for a, o in pairs
    ]
    net = SpelaSequential(*itertools.chain.from_iterable((RowNorm(), layer) for layer in layers))
    local = LocalSGD(net.parameters(), 0.1)
    program = train_step_program(net, local, (16,))
    engine = Engine(session_of(program), program)
    for _ in range(3):
        x, target = torch.randn(8, 16), torch.randint(10, (8,))
        expected = net.local_step(x, target, local)
        found = engine.step(x, target, 0.1)
        torch.testing.assert_close(torch.from_numpy(found["losses"]), expected, rtol=0, atol=1e-4)
    _assert_same_weights(net, engine.carried, 1e-4)


def test_dropout_is_a_mask_that_the_caller_draws(session_of):
    torch.manual_seed(0)
    net = _net(dropout=0.25, objective="softmax")
    local = LocalAdam(net.parameters(), 1e-3)
    program = train_step_program(net, local, (1, 8, 8))
    assert program.facts["dropout"] == {"mask.4": 0.25}
    engine = Engine(session_of(program), program)
    net[4] = _Masked()
    for x, target in digit_batches(10):
        net[4].mask = (torch.rand(len(x), 48) >= 0.25).float() / 0.75
        expected = net.local_step(x, target, local)
        found = engine.step(x, target, 1e-3, **{"mask.4": net[4].mask})
        torch.testing.assert_close(torch.from_numpy(found["losses"]), expected, rtol=0, atol=1e-5)
    _assert_same_weights(net, engine.carried, 1e-5)


def test_a_module_that_appears_twice_is_applied_twice():
    torch.manual_seed(0)
    tanh = nn.Tanh()
    net = SpelaSequential(
        SpelaLinear(4, 6, 3), tanh, SpelaLinear(6, 6, 3), tanh, SpelaLinear(6, 6, 3)
    )
    local = LocalSGD(net.parameters(), 0.5)
    program = train_step_program(net, local, (4,))
    x, target = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    given = dict(program.defaults)
    losses, *_ = program.exported.module()(x, target, torch.tensor(0.5), {}, given, {})
    torch.testing.assert_close(losses, net.local_step(x, target, local))


def test_a_program_keeps_the_weights_it_was_traced_with():
    torch.manual_seed(0)
    net = _net()
    local = LocalSGD(net.parameters(), 0.5, momentum=0.9)
    x, target = next(digit_batches(1))
    net.local_step(x, target, local)
    program = train_step_program(net, local, (1, 8, 8))
    before = {name: value.clone() for name, value in program.defaults.items()}
    net.local_step(x, target, local)
    assert all(torch.equal(value, before[name]) for name, value in program.defaults.items())
    assert not torch.equal(net[2].weight, before["2.weight"])


def test_it_goes_on_from_an_optimizer_that_has_stepped(session_of):
    torch.manual_seed(0)
    net = _net()
    local = LocalAdam(net.parameters(), 1e-2)
    batches = list(digit_batches(8))
    for x, target in batches[:5]:
        net.local_step(x, target, local)
    program = train_step_program(net, local, (1, 8, 8))
    assert float(program.defaults["2.weight.step"]) == 5
    engine = Engine(session_of(program), program)
    for x, target in batches[5:]:
        net.local_step(x, target, local)
        engine.step(x, target, 1e-2)
    _assert_same_weights(net, engine.carried, 1e-5)


def test_a_frozen_layer_stays_and_is_no_input(session_of):
    torch.manual_seed(0)
    net = _net()
    net[2].requires_grad_(False)
    local = LocalSGD(net.parameters(), 0.5)
    program = train_step_program(net, local, (1, 8, 8))
    assert "2.weight" not in program.inputs
    engine = Engine(session_of(program), program)
    for x, target in digit_batches(5):
        expected = net.local_step(x, target, local)
        found = engine.step(x, target, 0.5)
        torch.testing.assert_close(torch.from_numpy(found["losses"]), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        torch.from_numpy(engine.carried["5.weight"]), net[5].weight.data, rtol=0, atol=1e-5
    )


def test_weights_without_a_gradient_stay_finite(session_of):
    """Adam divides by sqrt(0) + eps there: an exporter that drops eps makes NaN of them."""
    net = SpelaSequential(SpelaLinear(4, 6, 3))
    program = train_step_program(net, LocalAdam(net.parameters()), (4,))
    engine = Engine(session_of(program), program)
    before = net[0].weight.detach().clone()
    engine.step(torch.eye(4)[:2], torch.tensor([0, 2]), 0.1)
    after = torch.from_numpy(engine.carried["0.weight"])
    assert torch.equal(after[:, 2:], before[:, 2:])
    assert not torch.equal(after[:, :2], before[:, :2])


def test_pt2_holds_the_same_function(tmp_path):
    torch.manual_seed(0)
    net = _net()
    local = LocalSGD(net.parameters(), 0.5, momentum=0.9)
    program = train_step_program(net, local, (1, 8, 8))
    write_pt2(program, tmp_path / "step.pt2")
    step = torch.export.load(tmp_path / "step.pt2").module()
    x, target = next(digit_batches(1))
    names = [name for name, _ in net.named_parameters()]
    weights = {name: program.defaults[name].clone() for name in names}
    state = {k: v.clone() for k, v in program.defaults.items() if k not in weights}
    losses, _, new, _ = step(x, target, torch.tensor(0.5), {}, weights, state)
    assert all(torch.equal(weights[name], program.defaults[name]) for name in names)  # pure
    expected = net.local_step(x, target, local)
    torch.testing.assert_close(losses, expected)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(new[name], parameter.detach(), rtol=0, atol=1e-5)


def test_what_has_no_such_step_is_a_value_error():
    net = _net()
    with pytest.raises(ValueError, match="sgd or adam"):
        train_step_program(net, torch.optim.AdamW(net.parameters()), (1, 8, 8))
    rival = BackpropSequential(nn.Linear(4, 2))
    with pytest.raises(ValueError, match="export its inference"):
        train_step_program(rival, LocalSGD(rival.parameters()), (4,))
    groups = [{"params": [p]} for p in net.parameters()]
    with pytest.raises(ValueError, match="one parameter group, got 4"):
        train_step_program(net, LocalSGD(groups), (1, 8, 8))
    bound = nn.utils.parametrizations.weight_norm(SpelaLinear(4, 3, 2))
    other = SpelaSequential(bound)
    with pytest.raises(ValueError, match="layer 0 is trained through parametrizations"):
        train_step_program(other, LocalSGD(other.parameters()), (4,))


class _Halved(SpelaLinear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


def _hooked() -> SpelaLinear:
    layer = SpelaLinear(4, 3, 2)
    layer.register_forward_hook(lambda module, args, y: -y)
    return layer


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([_Halved(4, 3, 2)], r"module 0 \(_Halved\) has a `forward` of its own"),
        ([_hooked()], r"module 0 \(SpelaLinear\) has a forward hook"),
        ([nn.AlphaDropout(0.5), SpelaLinear(4, 3, 2)], "draws by AlphaDropout"),
        (
            [nn.Sequential(nn.Dropout(0.5)), SpelaLinear(4, 3, 2)],
            "module 0 .* draws by Dropout",
        ),
        ([nn.RReLU(), SpelaLinear(4, 3, 2)], "draws by RReLU"),
        ([nn.BatchNorm1d(4), SpelaLinear(4, 3, 2)], "has a BatchNorm1d, .* wrap it in Frozen"),
    ],
)
def test_a_step_that_would_leave_something_out_is_refused(modules, message):
    net = SpelaSequential(*modules)
    with pytest.raises(ValueError, match=message):
        train_step_program(net, LocalSGD(net.parameters()), (4,))


def _with(option: str, value: object) -> Any:
    def make(net: SpelaSequential) -> torch.optim.Optimizer:
        optimizer = LocalAdam(net.parameters())
        optimizer.param_groups[0][option] = value
        return optimizer

    return make


def _hooked(net: SpelaSequential) -> torch.optim.Optimizer:
    net[2].weight.register_hook(lambda gradient: 0 * gradient)
    return LocalSGD(net.parameters())


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (_with("maximize", True), "plain rule"),
        (_with("amsgrad", True), "plain rule"),
        (_with("decoupled_weight_decay", True), "plain rule"),
        (_hooked, "gradient hook on its weight"),
        (lambda net: LocalSGD(nn.Linear(2, 2).parameters()), "does not hold"),
    ],
)
def test_what_the_exported_step_would_do_otherwise_is_refused(make: Any, match: str) -> None:
    net = _net()
    with pytest.raises(ValueError, match=match):
        train_step_program(net, make(net), (1, 8, 8))


def test_networks_that_a_local_step_refuses_are_refused() -> None:
    layer = SpelaLinear(4, 4, 3)
    for modules, match in (
        ([layer, layer], "share a parameter"),
        ([nn.Sequential(SpelaLinear(4, 4, 3)), layer], "would not learn"),
        ([SpelaLinear(4, 4, 5), layer], "cannot learn from the same labels"),
        ([layer, nn.Tanh()], "must be a SPELA layer"),
    ):
        net = SpelaSequential(*modules)
        optimizer = LocalSGD(list(dict.fromkeys(net.parameters())))
        with pytest.raises(ValueError, match=match):
            train_step_program(net, optimizer, (4,))


def test_a_program_is_of_the_weights_of_its_moment_and_draws_nothing() -> None:
    net = SpelaSequential(SpelaLinear(4, 8, 3), SpelaLinear(8, 8, 3))
    net[0].requires_grad_(False)
    optimizer = LocalSGD(net.parameters(), lr=1.0)
    drawn = torch.get_rng_state()
    step, inference = train_step_program(net, optimizer, (4,)), inference_program(net, (4,))
    assert torch.equal(torch.get_rng_state(), drawn)
    x, target = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    with torch.no_grad():
        before = net.layer_scores(x)
    given = (x, target, torch.tensor(0.0), {}, dict(step.defaults), {})
    with torch.no_grad():
        net[0].weight.mul_(-3)
        net[1].weight.mul_(-3)
    assert all(map(torch.allclose, inference.exported.module()(x), before))
    assert all(map(torch.allclose, step.exported.module()(*given)[1], before))


def test_the_exported_adam_has_the_optimizers_betas_and_eps() -> None:
    torch.manual_seed(0)
    net = SpelaSequential(SpelaLinear(4, 6, 3))
    local = LocalAdam(net.parameters(), 0.1, betas=(0.5, 0.7), eps=1e-3, weight_decay=0.01)
    program = train_step_program(net, local, (4,))
    step, weights = program.exported.module(), dict(program.defaults)
    names = [name for name, _ in net.named_parameters()]
    state = {name: weights.pop(name) for name in list(weights) if name not in names}
    for _ in range(3):
        x, target = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
        _, _, weights, state = step(x, target, torch.tensor(0.1), {}, weights, state)
        net.local_step(x, target, local)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(weights[name], parameter.detach(), rtol=0, atol=1e-5)


def test_counts_are_float32_whatever_torchs_default_dtype():
    net, before = SpelaSequential(SpelaLinear(4, 8, 3)), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        program = train_step_program(net, LocalAdam(net.parameters()), (4,))
    finally:
        torch.set_default_dtype(before)
    assert program.defaults["0.weight.step"].dtype == torch.float32
