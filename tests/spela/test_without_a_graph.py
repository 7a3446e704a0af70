"""Steps that no graph can hold, or that are refused: eager, after one message."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spela import GraphedStep, SpelaSequential
from tests.spela.graphed_networks import (
    OPTIMIZERS,
    Pair,
    as_on_a_gpu,
    linear_net,
    make_batches,
    train_pair,
)
from tests.spela.tape import HostReadError, Recorder, Tape, recorder

__all__ = ["as_on_a_gpu", "recorder"]


def test_reading_a_value_is_found(recorder: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    pair = Pair(
        lambda g: SpelaSequential(nn.Flatten(), Reads(), *linear_net()(g)), OPTIMIZERS["adam"]
    )
    for x, target in make_batches(6):
        pair.step(x, target)
    assert not pair.graphed.captured
    (record,) = caplog.records
    assert "without a CUDA graph: the step reads a value on the host" in record.getMessage()
    with pytest.raises(HostReadError), Tape():
        torch.ones(2).nonzero()


REFUSED: dict[str, tuple[Callable[[Any, Any], object], str]] = {
    "a hook of a module": (
        lambda net, _: net[2].register_forward_hook(lambda *_: None),
        "a module has forward hooks",
    ),
    "a hook of all modules": (
        lambda net, _: nn.modules.module.register_module_forward_hook(lambda *_: None),
        "a module has forward hooks",
    ),
    "a hook of a parameter's gradient": (
        lambda net, _: net[2].weight.register_hook(torch.zeros_like),
        "a gradient has hooks",
    ),
    "a hook behind a parameter's gradient": (
        lambda net, _: net[2].bias.register_post_accumulate_grad_hook(lambda _: None),
        "a gradient has hooks",
    ),
    "a hook of a module's gradient": (
        lambda net, _: net[0].register_full_backward_hook(lambda *_: None),
        "a gradient has hooks",
    ),
    "a hook before a module's gradient": (
        lambda net, _: net[0].register_full_backward_pre_hook(lambda *_: None),
        "a gradient has hooks",
    ),
    "a hook of the optimizer": (
        lambda _, optimizer: optimizer.register_step_post_hook(lambda *_: None),
        "the optimizer has step hooks",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_hooks_go_on_being_called(
    what: str, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    add, message = REFUSED[what]
    pair = Pair(linear_net(), OPTIMIZERS["adam"])
    train_pair(pair, 4)
    assert recorder.replays == 2
    handles: list[Any] = [*map(add, pair.nets, pair.optimizers)]
    try:
        train_pair(pair, 4)
    finally:
        for handle in handles:
            handle.remove()
    assert recorder.replays == 2
    (record,) = caplog.records
    assert message in record.getMessage()
    train_pair(pair, 4)
    assert recorder.replays > 2


def test_what_cannot_be_captured_steps_without_a_graph_after_one_message(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.waits = ["model.py:12"]
    pair = Pair(linear_net(), OPTIMIZERS["adam"])
    train_pair(pair, 6)
    assert [r.getMessage() for r in caplog.records] == [
        "spela: training steps run without a CUDA graph: Python waits for the GPU in model.py:12"
    ]
    caplog.clear()
    torchs = Pair(linear_net(), lambda net: torch.optim.AdamW(net.parameters()))
    train_pair(torchs, 4)
    assert "AdamW keeps numbers on the CPU: build it with fused=True" in caplog.text
    assert len(caplog.records) == 1
    assert recorder.tapes == []


def test_a_required_graph(recorder: Recorder) -> None:
    net = linear_net()(torch.Generator().manual_seed(1))
    x, target = make_batches(1)[0]
    before = copy.deepcopy(net.state_dict())
    step = GraphedStep(net, torch.optim.AdamW(net.parameters()), required=True)
    with pytest.raises(ValueError, match="cannot be a CUDA graph: AdamW keeps numbers"):
        step(x, target)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    step = GraphedStep(net, OPTIMIZERS["adam"](net), required=True)
    for _ in range(4):
        step(x, target)
    assert step.captured
    with pytest.raises(TypeError, match=r"must be .*Module, got list"):
        GraphedStep([net], OPTIMIZERS["adam"](net))  # type: ignore[arg-type]


def test_bad_batches_are_refused_as_ever(recorder: Recorder) -> None:
    net = linear_net()(torch.Generator().manual_seed(1))
    optimizer = OPTIMIZERS["adam"](net)
    step = GraphedStep(net, optimizer)
    x, target = make_batches(1)[0]
    for _ in range(4):
        step(x, target)
    before = copy.deepcopy(net.state_dict())
    for bad, error in (
        ((x[:, :, :7], target), ValueError),
        ((x, target[:4]), ValueError),
        ((x, target.float()), TypeError),
        ((x.double(), target), TypeError),
        ((x.tolist(), target), TypeError),
    ):
        with pytest.raises(error) as ours:
            step(*bad)
        with pytest.raises(error) as theirs:
            net.local_step(*bad, optimizer)
        assert str(ours.value) == str(theirs.value)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(group["lr"] == 1e-2 for group in optimizer.param_groups)


def test_on_a_cpu_it_is_the_eager_step() -> None:
    pair = Pair(linear_net(), OPTIMIZERS["adam"])
    train_pair(pair, 3)
    assert not pair.graphed.captured
    required = GraphedStep(pair.nets[1], pair.optimizers[1], required=True)
    with pytest.raises(ValueError, match="there are none on cpu"):
        required(*make_batches(1)[0])
