"""Real CUDA graphs: the eager step's bits, no waits, and a device as before after a refusal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spela import SpelaSequential
from tests.spela.graphed_networks import NETWORKS, OPTIMIZERS, Pair, make_batches
from tests.spela_kernels.on_a_gpu import NEEDS_GPU

pytestmark = NEEDS_GPU


def _train(pair: Pair, count: int, size: int = 6) -> None:
    for x, target in make_batches(count, size):
        pair.step(x.cuda(), target.cuda())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_replayed_steps_are_eager_steps_to_the_bit(network: str, optimizer: str) -> None:
    pair = Pair(NETWORKS[network], OPTIMIZERS[optimizer], "cuda")
    _train(pair, 7)
    assert pair.graphed.captured
    _train(pair, 1, size=4)
    _train(pair, 3)


def test_a_replay_never_waits_for_the_gpu() -> None:
    pair = Pair(NETWORKS["objective softmax"], OPTIMIZERS["adam"], "cuda")
    _train(pair, 4)
    x, target = (tensor.cuda() for tensor in make_batches(1)[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        pair.graphed(x, target)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_that_waits_is_refused_and_dropout_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    build = NETWORKS["objective log"]
    pair = Pair(
        lambda g: SpelaSequential(nn.Flatten(), Reads(), *build(g)), OPTIMIZERS["adam"], "cuda"
    )
    _train(pair, 6)
    assert not pair.graphed.captured
    assert "Python waits for the GPU in" in caplog.text
    assert torch.nn.functional.dropout(x := torch.ones(64, device="cuda"), 0.5).shape == x.shape
