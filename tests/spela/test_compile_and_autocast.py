"""Networks inside torch.compile(fullgraph=True), and under autocast."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from spela import RowNorm, SpelaBlock, SpelaConv2d, SpelaLinear, SpelaSequential
from spela.optim import LocalAdam, LocalSGD

X = torch.randn(8, 3, 4, generator=torch.Generator().manual_seed(1))
TARGET = torch.randint(3, (8,), generator=torch.Generator().manual_seed(2))
Optimizers = dict[str, Callable[[SpelaSequential], torch.optim.Optimizer]]
OPTIMIZERS: Optimizers = {
    "sgd": lambda net: LocalSGD(net.parameters(), lr=torch.tensor(0.1)),
    "momentum": lambda net: LocalSGD(net.parameters(), lr=torch.tensor(0.1), momentum=0.9),
    "adam": lambda net: LocalAdam(net.parameters(), lr=torch.tensor(1e-2)),
}


def _network() -> SpelaSequential:
    g = torch.Generator().manual_seed(0)
    return SpelaSequential(
        torch.nn.Flatten(),
        RowNorm("rms"),
        SpelaLinear(12, 16, 3, objective="softmax", activation="gelu", generator=g),
        SpelaLinear(16, 9, 3, generator=g),
    )


def _train(net: SpelaSequential, optimizer: torch.optim.Optimizer, step: Callable) -> Tensor:
    losses = []
    for _ in range(4):
        losses.append(step(X, TARGET))
        for group in optimizer.param_groups:
            group["lr"].mul_(0.5)  # a schedule
    return torch.stack(losses)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_local_step_is_one_graph_that_a_schedule_does_not_recompile(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In a graph the norm of rows is torch's, whose last bits are not those of the compiled pass.
    monkeypatch.setattr("spela.layers.normalize.norm_fits", lambda x: False)
    monkeypatch.setattr("spela.network.chain_of", lambda modules, x, target: None)
    nets = [_network(), _network()]
    optimizers = [OPTIMIZERS[name](net) for net in nets]
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, t: nets[1].local_step(x, t, optimizers[1]), fullgraph=True, backend="aot_eager"
    )
    expected = _train(nets[0], optimizers[0], lambda x, t: nets[0].local_step(x, t, optimizers[0]))
    # The first step creates the optimizer's state, so the second may compile once more; no other may.
    compiled(X, TARGET)
    compiled(X, TARGET)
    nets[1].load_state_dict(_network().state_dict())
    for state in optimizers[1].state.values():
        for value in state.values():
            value.zero_()
    with torch._dynamo.config.patch(error_on_recompile=True):
        result = _train(nets[1], optimizers[1], compiled)
    assert torch.equal(result, expected)
    for now, then in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
        assert torch.equal(now, then)
    assert not torch.equal(expected[0], expected[-1])


def test_local_losses_compile_to_one_graph() -> None:
    eager, net = _network(), _network()
    torch._dynamo.reset()
    losses = torch.compile(net.local_losses, fullgraph=True)(X, TARGET)
    losses.sum().backward()
    expected = eager.local_losses(X, TARGET)
    expected.sum().backward()
    torch.testing.assert_close(losses, expected)
    for now, then in zip(net.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(now.grad, then.grad)


def _published(net: SpelaSequential) -> Tensor:
    """The same losses from torch's own differentiable operations."""
    x, losses = X, []
    for module in net:
        x = module(x.detach())
        if isinstance(module, SpelaLinear):
            unit = torch.nn.functional.normalize(x.to(module.vectors.dtype), dim=1)
            cosines = unit @ module.vectors.T
            if module.objective == "softmax":
                losses.append(torch.nn.functional.cross_entropy(20 * cosines, TARGET))
            else:
                losses.append(torch.log(2 - cosines[torch.arange(8), TARGET]).mean())
    return torch.stack(losses)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_costs_no_more_accuracy_than_torchs_own_layers(dtype: torch.dtype) -> None:
    exact = _network().double()
    exact.local_losses(X.double(), TARGET).sum().backward()
    ours, torchs = _network(), _network()
    with torch.autocast("cpu", dtype=dtype):
        losses = ours.local_losses(X, TARGET)
        published = _published(torchs)
    assert losses.dtype == torch.float32
    losses.sum().backward()
    published.sum().backward()
    for mine, rival, true in zip(
        ours.parameters(), torchs.parameters(), exact.parameters(), strict=True
    ):
        assert mine.grad.dtype == torch.float32
        error = (mine.grad - true.grad).abs().max()
        assert 0 < error <= 2 * (rival.grad - true.grad).abs().max()


def test_a_fused_step_under_autocast_updates_float32_weights() -> None:
    nets = [_network(), _network()]
    fused = LocalSGD(nets[0].parameters(), lr=0.1)
    plain = torch.optim.SGD(nets[1].parameters(), lr=0.1)
    before = copy.deepcopy(nets[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nets[0].local_step(X, TARGET, fused)
        nets[1].local_losses(X, TARGET).sum().backward()
    plain.step()
    for now, then, start in zip(*(net.parameters() for net in (*nets, before)), strict=True):
        assert now.dtype == torch.float32
        assert not torch.equal(now, start)
        torch.testing.assert_close(now, then)


def test_sixteen_bit_input_needs_float32_parameters() -> None:
    layer = SpelaLinear(12, 16, 3).double()
    with pytest.raises(TypeError, match="convert one"):
        layer.local_loss(X.flatten(1).bfloat16(), TARGET)


def _conv() -> SpelaSequential:
    g = torch.Generator().manual_seed(0)
    return SpelaSequential(
        SpelaConv2d(2, 4, 3, 3, output_size=(3, 3), symmetric_dim=4, generator=g)
    )


def test_a_compiled_step_of_a_convolution_is_the_eager_one() -> None:
    x, target = torch.randn(6, 2, 8, 8), torch.arange(6) % 3
    nets = [_conv(), _conv()]
    optimizers = [LocalSGD(net.parameters(), lr=0.1) for net in nets]
    torch._dynamo.reset()
    compiled = torch.compile(nets[1].local_step, backend="eager")
    for _ in range(3):
        expected = nets[0].local_step(x, target, optimizers[0])
        torch.testing.assert_close(compiled(x, target, optimizers[1]), expected)
    for now, then in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
        torch.testing.assert_close(now, then, rtol=1e-5, atol=1e-6)


def test_scores_keep_float32_under_autocast_and_early_exits_mix_with_convolutions() -> None:
    net = SpelaSequential(*_conv(), torch.nn.Flatten(), SpelaLinear(36, 8, 3)).eval()
    x = torch.randn(6, 2, 8, 8)
    y = torch.randn(6, 8)
    expected = net[2].scores(y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(net[2].scores(y), expected)
        assert net.predict_detailed(x, 10.0).layer.tolist() == [1] * 6


def _blocks() -> SpelaSequential:
    g = torch.Generator().manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 16))
    return SpelaSequential(SpelaBlock(body, 3, X, generator=g), SpelaLinear(16, 9, 3, generator=g))


def _convolution() -> SpelaSequential:
    g = torch.Generator().manual_seed(0)
    return SpelaSequential(
        nn.Unflatten(1, (1, 3)),
        SpelaConv2d(1, 4, 2, 3, (2, 3), symmetric_dim=8, pool=None, generator=g),
    )


@pytest.mark.parametrize("optimizer", [LocalSGD, LocalAdam, torch.optim.AdamW])
@pytest.mark.parametrize("build", [_network, _blocks, _convolution])
def test_many_steps_in_one_context_are_those_of_a_context_each(build, optimizer) -> None:
    """torch keeps weights that it cast until the context ends: steps would train on the first ones."""

    def train(contexts: int) -> list[Tensor]:
        torch.manual_seed(0)
        net = build()
        rule = optimizer(net.parameters(), lr=0.05)
        for _ in range(contexts):
            with torch.autocast("cpu", torch.bfloat16):
                for _ in range(6 // contexts):
                    net.local_step(X, TARGET, rule)
        return list(net.state_dict().values())

    before, together, apart = build().state_dict().values(), train(1), train(6)
    assert not all(torch.equal(a, b) for a, b in zip(before, together, strict=True))
    for one, other in zip(together, apart, strict=True):
        assert torch.equal(one, other)


def test_scores_in_the_context_of_a_step_are_of_the_new_weights() -> None:
    net = _blocks()
    with torch.autocast("cpu", torch.bfloat16):
        net(X)
        net.local_step(X, TARGET, LocalSGD(net.parameters(), lr=1.0))
        inside = net(X)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(inside, net(X))
