"""Whoever walks over a network leaves its input alone, and sees what modules out of place show."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from spela.data import Dataset
from spela.export import inference_program, train_step_program
from spela.layers import SpelaLinear
from spela.network import SpelaSequential
from spela.optim import LocalSGD
from spela.reports import geometry, looks
from spela.training import Probe, diagnose
from spela.training.frozen import behind_frozen

Y = torch.arange(12) % 3


def _network(in_place: bool) -> SpelaSequential:
    generator = torch.Generator().manual_seed(0)
    return SpelaSequential(
        nn.ReLU(inplace=in_place),
        SpelaLinear(5, 8, 3, generator=generator),
        nn.Hardtanh(-0.01, 0.2, inplace=in_place),
        SpelaLinear(8, 6, 3, generator=generator),
    )


def _frozen(net: SpelaSequential, x: Tensor, folder: Path) -> list[Tensor]:
    for module in list(net)[:2]:
        module.eval()
    data = Dataset("d", x, Y, x, Y, 3, ("a", "b", "c"))
    learner = behind_frozen(net, data, 4, folder, nullcontext())
    assert learner is not None
    return [learner.train_x, learner.test_x]


def _diagnosed(net: SpelaSequential, x: Tensor, folder: Path) -> list[Tensor]:
    rows = diagnose(net, Probe(x, Y))
    return [torch.tensor([row.cosine_margin, row.dead_units, row.alignment]) for row in rows]


def _looked_at(net: SpelaSequential, x: Tensor, folder: Path) -> list[Tensor]:
    scores, outputs = looks._pass(SimpleNamespace(net=net), x, {0, 1})  # type: ignore[arg-type]
    return [*scores, *outputs]


def _plotted(net: SpelaSequential, x: Tensor, folder: Path) -> list[Tensor]:
    return geometry._outputs(net, x)


def _exported(net: SpelaSequential, x: Tensor, folder: Path) -> list[Tensor]:
    program = inference_program(net, (5,))
    return list(program.exported.module()(x))


def _exported_step(net: SpelaSequential, x: Tensor, folder: Path) -> list[Tensor]:
    program = train_step_program(net, LocalSGD(net.parameters(), lr=0.5), (5,), batch_size=12)
    weights = dict(program.defaults)
    losses, scores, updated, _ = program.exported.module()(x, Y, torch.tensor(0.5), {}, weights, {})
    return [losses, *scores, *updated.values()]


@pytest.mark.parametrize(
    "walk", [_frozen, _diagnosed, _looked_at, _plotted, _exported, _exported_step]
)
def test_a_walk_leaves_its_input_alone_and_sees_the_same_in_place(
    walk: Callable[[SpelaSequential, Tensor, Path], list[Tensor]], tmp_path: Path
) -> None:
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    given = x.clone()
    with torch.no_grad() if walk is not _diagnosed else nullcontext():
        found = walk(_network(True), given, tmp_path)
        assert torch.equal(given, x)
        expected = walk(_network(False), x.clone(), tmp_path)
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
