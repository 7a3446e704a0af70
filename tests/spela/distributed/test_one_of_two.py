"""A process of two whose other half is played: gradients that share memory, scores, samples of tokens."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from spela import SpelaBlock, SpelaConv2d, SpelaLinear, SpelaSequential
from spela.distributed import DataParallelSequential, LayerParallelSequential, Ranks
from spela.distributed.ranks import Pending
from spela.early_exit import layer_costs
from spela.optim import LocalSGD


class Twin(Ranks):
    """The first of two processes that have the same rows: a sum over both doubles."""

    def start_sum(self, tensor: Tensor) -> Pending:
        tensor.mul_(2)
        return Pending(self, SimpleNamespace(wait=lambda: None), tensor)

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """They are the same already."""


class Silent(Ranks):
    """The first of two processes, whose messages go nowhere."""

    def start_sum(self, tensor: Tensor) -> Pending:
        return Pending(self, SimpleNamespace(wait=lambda: None), tensor)

    def start_send(self, tensor: Tensor, to: int) -> Pending:
        return Pending(self, SimpleNamespace(wait=lambda: None), tensor)


def _first(kind: type[Ranks]) -> Ranks:
    return kind(0, 2, torch.device("cpu"), 60.0)


class _Added(nn.Module):
    """Two parameters whose gradients autograd gives as one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 5))
        self.v = nn.Parameter(torch.randn(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(nn.functional.linear(x, self.w + self.v))


def test_gradients_that_share_memory_are_summed_once_each() -> None:
    torch.manual_seed(0)
    x, target = torch.randn(3, 5), torch.tensor([0, 1, 2])
    alone = SpelaSequential(SpelaBlock(_Added(), 3, x))
    shared = DataParallelSequential(copy.deepcopy(alone), _first(Twin))
    for _ in range(3):
        alone.local_step(x, target, LocalSGD(alone.parameters(), lr=0.1))
        shared.local_step(
            torch.cat([x, x]), target.repeat(2), LocalSGD(shared.parameters(), lr=0.1)
        )
    for (name, expected), found in zip(alone.named_parameters(), shared.parameters(), strict=True):
        torch.testing.assert_close(found, expected, msg=lambda m, name=name: f"{name}: {m}")


def test_scores_of_16_bit_layers_have_one_dtype_on_all_processes() -> None:
    """Convolutions answer in float32, linear layers in their own: a process may hold either alone."""
    sixteen = {"dtype": torch.bfloat16}
    conv = SpelaConv2d(3, 4, 3, 3, (3, 3), **sixteen)
    linear, last = SpelaLinear(36, 6, 3, **sixteen), SpelaLinear(6, 6, 3, **sixteen)
    for net, shape in (
        (SpelaSequential(conv, nn.Flatten(), linear), (3, 8, 8)),
        (SpelaSequential(linear, last), (36,)),
    ):
        spread = LayerParallelSequential(copy.deepcopy(net), _first(Silent), shape)
        x = torch.randn(2, *shape, dtype=torch.bfloat16)
        scores = spread.eval().layer_scores(x)
        assert [s.dtype for s in scores] == [torch.float32] * 2
        torch.testing.assert_close(scores[0], net.eval().layer_scores(x)[0].float())


def test_scores_while_training_draw_the_masks_of_other_processes() -> None:
    net = SpelaSequential(SpelaLinear(5, 8, 3), nn.Dropout(0.5), SpelaLinear(8, 8, 3))
    alone = copy.deepcopy(net)
    spread = LayerParallelSequential(net, _first(Silent), (5,))
    x = torch.randn(4, 5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        alone.layer_scores(x)
        expected = torch.rand(3)
        torch.manual_seed(0)
        spread.layer_scores(x)
        assert torch.equal(torch.rand(3), expected)


def test_networks_of_tokens_are_traced_with_tokens() -> None:
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    body = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 6))
    blocks = [SpelaBlock(body, 3, tokens), SpelaBlock(nn.Linear(6, 6), 3, torch.randn(2, 5, 6))]
    net = SpelaSequential(*blocks)
    assert layer_costs(net, (5,)) == layer_costs(net, (5,), torch.int64)
    spread = LayerParallelSequential(net, _first(Silent), (5,))
    assert spread.stages == [0, 1]
    assert spread.eval().layer_scores(tokens)[0].shape == (2, 3)
