"""What changes between steps: what is captured anew for it, and what need not be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from spela import SpelaSequential
from tests.spela.graphed_networks import (
    OPTIMIZERS,
    Pair,
    as_on_a_gpu,
    linear_net,
    make_batches,
    train_pair,
)
from tests.spela.tape import Recorder, recorder

__all__ = ["as_on_a_gpu", "recorder"]


def test_a_batch_of_another_size_steps_without_the_graph_which_stays(recorder: Recorder) -> None:
    pair = Pair(linear_net("softmax", "gelu"), OPTIMIZERS["adam"])
    for _ in range(3):  # epochs, whose last batch is shorter
        train_pair(pair, 5)
        train_pair(pair, 1, size=4)
    assert len(recorder.tapes) == 1
    assert recorder.replays == 3 + 5 + 5
    train_pair(pair, 3, size=4)  # for good
    assert len(recorder.tapes) == 2
    assert recorder.replays == 13 + 3  # the last epoch's was the first of two


def _changes() -> dict[str, Callable[[Pair], None]]:
    def nets(change: Callable[[SpelaSequential], object]) -> Callable[[Pair], None]:
        return lambda pair: [change(net) for net in pair.nets] and None

    def optimizers(change: Callable[[Any], object]) -> Callable[[Pair], None]:
        return lambda pair: [change(optimizer) for optimizer in pair.optimizers] and None

    @torch.no_grad()
    def replace_weight(net: SpelaSequential) -> None:
        net[2].weight.data = 2 * net[2].weight.data

    def swap_vectors(net: SpelaSequential) -> None:
        net[2].vectors = -net[2].vectors

    return {
        "a layer is frozen": nets(lambda net: net[2].requires_grad_(False)),
        "eval mode": nets(lambda net: net.eval()),
        "a module is replaced": nets(lambda net: net.__setitem__(3, nn.Dropout(0.5))),
        "a parameter has other memory": nets(replace_weight),
        "a buffer is another tensor": nets(swap_vectors),
        "the optimizer is restored": optimizers(
            lambda o: o.load_state_dict(copy.deepcopy(o.state_dict()))
        ),
        "another weight decay": optimizers(lambda o: o.param_groups[0].update(weight_decay=0.1)),
        "another decay of moments": optimizers(
            lambda o: o.param_groups[0].update(betas=(0.5, 0.9))
        ),
    }


@pytest.mark.parametrize("what", _changes())
def test_a_change_of_what_was_captured_is_captured_anew(what: str, recorder: Recorder) -> None:
    pair = Pair(linear_net("softmax", "gelu"), OPTIMIZERS["adam"])
    train_pair(pair, 4)
    assert recorder.replays == 2
    _changes()[what](pair)
    train_pair(pair, 4)
    assert len(recorder.tapes) == 2
    assert recorder.replays == 2 + 3


def test_weights_loaded_in_place_need_no_other_graph(recorder: Recorder) -> None:
    pair = Pair(linear_net("softmax", "gelu"), OPTIMIZERS["adam"])
    train_pair(pair, 4)
    other = linear_net("softmax", "gelu")(torch.Generator().manual_seed(9)).state_dict()
    for net in pair.nets:
        net.load_state_dict(other)
    train_pair(pair, 2)
    assert len(recorder.tapes) == 1
    assert recorder.replays == 4


def test_a_setting_that_changes_at_every_step_is_never_captured(recorder: Recorder) -> None:
    pair = Pair(linear_net(), OPTIMIZERS["momentum"])
    for step, (x, target) in enumerate(make_batches(6)):
        for optimizer in pair.optimizers:
            optimizer.param_groups[0]["momentum"] = 0.9 - 0.01 * step
        pair.step(x, target)
    assert recorder.tapes == []


def test_autocast_and_the_modes_of_torch(recorder: Recorder) -> None:
    pair = Pair(linear_net("softmax", "gelu"), OPTIMIZERS["adam"])
    with torch.autocast("cpu", torch.bfloat16):
        train_pair(pair, 4)
    train_pair(pair, 4)  # outside
    assert len(recorder.tapes) == 2
    with torch.inference_mode():
        train_pair(pair, 1)
    with torch.no_grad():
        train_pair(pair, 1)
    assert len(recorder.tapes) == 2
    assert recorder.replays == 2 + 3 + 2
    x, target = make_batches(1)[0]
    pair.step(x.requires_grad_(), target)
    assert not pair.graphed._graph.x.requires_grad  # type: ignore[union-attr]


def test_another_dtype_of_autocast_is_captured_anew(recorder: Recorder) -> None:
    pair = Pair(linear_net("softmax", "gelu"), OPTIMIZERS["adam"])
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            train_pair(pair, 4)
    assert len(recorder.tapes) == 2
