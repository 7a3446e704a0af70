"""A step as a graph: the eager step's bits in every network, and nothing on the way that no graph holds."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spela import GraphedStep, SpelaLinear, graphed
from spela.optim import LocalAdam, LocalSGD
from spela_kernels import backend, use_backend
from tests.spela.graphed_networks import (
    NETWORKS,
    OPTIMIZERS,
    Build,
    Pair,
    as_on_a_gpu,
    backprop_net,
    block_net,
    linear_net,
    make_batches,
    rate_at,
)
from tests.spela.tape import Recorder, Tape, recorder

__all__ = ["as_on_a_gpu", "recorder"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_replayed_steps_are_eager_steps_to_the_bit(
    network: str, optimizer: str, recorder: Recorder
) -> None:
    pair = Pair(NETWORKS[network], OPTIMIZERS[optimizer])
    for x, target in make_batches(7):
        pair.step(x, target)
    assert len(recorder.tapes) == 1
    assert recorder.replays >= 4


@pytest.mark.parametrize(
    ("build", "optimizer"),
    [
        (backprop_net, lambda net: torch.optim.AdamW(net.parameters(), fused=True)),
        (block_net(similarity=0.5), lambda net: torch.optim.AdamW(net.parameters(), fused=True)),
        (block_net(projection=None), lambda net: LocalAdam(net.parameters())),
    ],
    ids=["backprop", "similarity", "no projection"],
)
def test_fused_steps_of_torch_are_replayed_to_float32_of_the_rate(
    build: Build, optimizer: Any, recorder: Recorder
) -> None:
    pair = Pair(build, optimizer)
    for x, target in make_batches(6):
        for each in pair.optimizers:  # exact in float32, as the training loop's are
            for group in each.param_groups:
                group["lr"] = 2.0 ** -(5 + pair.steps)
        pair.steps += 1
        expected = pair.nets[0].local_step(x, target, pair.optimizers[0])
        assert torch.equal(pair.graphed(x, target), expected)
    for mine, theirs in zip(pair.nets[1].parameters(), pair.nets[0].parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert recorder.replays == 4
    assert not any(group["capturable"] for group in pair.optimizers[1].param_groups)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "network",
    [
        "objective log",
        "activation prelu",
        "convolution, softmax",
        *(n for n in NETWORKS if "blocks" in n),
    ],
)
def test_nothing_that_a_captured_step_makes_outlives_it_but_the_losses(
    network: str, optimizer: str, recorder: Recorder
) -> None:
    """What it makes lies in the graph's pool, where the next replay writes: nobody may keep it."""
    net = NETWORKS[network](torch.Generator().manual_seed(1))
    step = GraphedStep(net, OPTIMIZERS[optimizer](net))
    for x, target in make_batches(3):
        step(x, target)
    made = [weakref.ref(tensor) for *_, fresh in recorder.tapes[0].calls for tensor in fresh]
    assert len(made) > 20
    losses = step._graph.losses  # type: ignore[union-attr]
    recorder.tapes[0].calls.clear()
    gc.collect()
    assert [reference() for reference in made if reference() is not None] == [losses]


def _digest(launches: list[Any], static: dict[int, str]) -> list[Any]:
    """Launches as values; tensors by name where they lie for good, else numbered."""
    made: dict[int, int] = {}

    def value(argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        place = argument.data_ptr()
        where = static.get(place) or made.setdefault(place, len(made))
        return where, place if place in static else None, argument.shape, argument.stride()

    return [
        (launch.kernel.__name__, launch.programs, [*map(value, launch.arguments)], launch.options)
        for launch in launches
    ]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_two_successive_steps_make_the_same_launches(
    network: str, optimizer: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from spela_kernels.gpu.architectures import ARCHITECTURES
    from spela_kernels.gpu.launching import record_launches

    net = NETWORKS[network](torch.Generator().manual_seed(1))
    step = GraphedStep(net, OPTIMIZERS[optimizer](net))
    batches = make_batches(3)
    # By the reference: a recording leaves what its launches make unwritten. The first step makes the state.
    for batch in batches[: 1 if optimizer == "sgd" else 2]:
        step(*batch)
    digests: list[Any] = []

    def twice(run: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
        for _ in range(2):
            static = {tensor.data_ptr(): name for name, tensor in net.state_dict().items()}
            for index, state in enumerate(step.optimizer.state.values()):
                static |= {v.data_ptr(): f"{name} {index}" for name, v in state.items()}
            rates = [group["lr"] for group in step.optimizer.param_groups]
            static |= {lr.data_ptr(): "lr" for lr in rates}
            with record_launches(ARCHITECTURES["sm_90"]) as recording, Tape():
                losses = run()
            digests.append(_digest(recording.launches, static))
            rates[0].mul_(0.5)
        return lambda: None, losses

    monkeypatch.setitem(graphed._RECORDERS, "cpu", graphed._Recorder(twice, recorder.host_waits))
    monkeypatch.setattr(backend, "_runnable", lambda kind: ("triton", "reference"))
    with use_backend("triton"):
        step(*batches[2])
    assert step.captured
    first, second = digests
    assert len(first) >= 2 * len([m for m in net if isinstance(m, SpelaLinear)])
    assert first == second
    places = [
        argument[0] for launch in first for argument in launch[2] if isinstance(argument, tuple)
    ]
    assert "lr" in places
    assert any(isinstance(place, int) for place in places)


def test_a_number_that_changes_from_step_to_step_would_be_found(recorder: Recorder) -> None:
    """The stand-in holds what Python computed at the capture: a learning rate that is no tensor stays."""

    class Stubborn(LocalSGD):
        def _rule(self, like: Tensor) -> dict[str, Any]:
            return {**super()._rule(like), "lr": torch.tensor(float(self.rate))}

    pair = Pair(linear_net(), OPTIMIZERS["sgd"])
    pair.optimizers[1].__class__ = Stubborn
    batches = make_batches(3)
    for x, target in batches[:2]:
        pair.optimizers[1].rate = rate_at(pair.steps + 1)  # type: ignore[attr-defined]
        pair.step(x, target)
    pair.optimizers[1].rate = rate_at(3)  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="step 3"):
        pair.step(*batches[2])


def test_groups_tensors_and_schedulers_of_rates(recorder: Recorder) -> None:
    nets = [linear_net()(torch.Generator().manual_seed(1)).eval() for _ in range(2)]
    optimizers = [
        LocalAdam(
            [
                {"params": list(net[2].parameters()), "lr": 1e-2},
                {"params": list(net[5].parameters()), "lr": torch.tensor(1e-3)},
            ]
        )
        for net in nets
    ]
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(each, 0.7) for each in optimizers]
    step = GraphedStep(nets[1], optimizers[1])
    for x, target in make_batches(7):
        assert torch.equal(step(x, target), nets[0].local_step(x, target, optimizers[0]))
        for scheduler in schedulers:
            scheduler.step()
    for mine, theirs in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert recorder.replays == 5
    assert isinstance(optimizers[1].param_groups[0]["lr"], float)
    optimizers[1].param_groups[0]["lr"] = float("nan")
    with pytest.raises(ValueError, match="must be finite"):
        step(x, target)


def test_losses_are_the_callers_and_autograd_learns_of_the_update(recorder: Recorder) -> None:
    net = linear_net()(torch.Generator().manual_seed(1))
    step = GraphedStep(net, OPTIMIZERS["sgd"](net))
    (x, target), (other, _) = make_batches(2)
    for _ in range(3):
        losses = step(x, target)
    kept = losses.clone()
    step(other, target)
    assert torch.equal(losses, kept)
    pending = net[2](x.flatten(1)).square().sum() * net[2].weight.square().sum()
    step(x, target)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        pending.backward()


@pytest.mark.parametrize(
    ("rows", "columns"),
    [(slice(5, 11), slice(3)), (slice(6), slice(2, 5))],
    ids=["rows", "columns"],
)
def test_a_slice_is_rehearsed_as_it_is_captured(
    rows: slice, columns: slice, recorder: Recorder
) -> None:
    """Triton compiles for strides and for addresses that 16 divides: at a capture it would be too late."""
    seen = []

    class Notes(nn.Module):
        def local_step(self, x: Tensor, target: Tensor, optimizer: Any) -> Tensor:
            seen.append([(t.stride(), t.data_ptr() % 16) for t in (x, target)])
            return x.sum()[None]

    net = Notes()
    net.weight = nn.Parameter(torch.ones(1))
    step = GraphedStep(net, OPTIMIZERS["sgd"](net))
    x, target = torch.randn(11, 5)[rows, columns], torch.zeros(11, dtype=torch.int64)[rows]
    for _ in range(2):
        step(x, target)
    assert step.captured
    rehearsed, captured = seen
    assert rehearsed == captured
    assert captured[0] != (x.stride(), x.data_ptr() % 16)
