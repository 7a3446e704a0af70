"""What `convert` was asked for reaches every layer and block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from spela import SpelaBlock, SpelaConv2d, convert

IMAGES = torch.randn(6, 2, 16, 16)


def _model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * 49, 8), nn.ReLU(),
        nn.Linear(8, 5),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "objective", "scale", "conv_scale", "dim"),
    [
        ({}, "softmax", 20.0, 60.0, 16),
        (
            {"objective": "cosine", "scale": 3.0, "conv_scale": 7.0, "symmetric_dim": 6},
            "cosine",
            3.0,
            7.0,
            6,
        ),
    ],
)
def test_layers_learn_by_what_was_asked_for(
    given: dict[str, Any], objective: str, scale: float, conv_scale: float, dim: int
) -> None:
    net = convert(_model(), 5, IMAGES, **given)
    for layer in net.local_layers:
        assert layer.objective == objective
        assert layer.scale == (conv_scale if isinstance(layer, SpelaConv2d) else scale)
    conv = net.local_layers[0]
    assert conv.projection.shape[2] == dim
    assert conv.projection.std().item() == pytest.approx(0.1, rel=0.1)
    assert int(conv.grouping.max()) == 4  # a group a class


def test_blocks_learn_by_what_was_asked_for() -> None:
    settings = {"objective": "softmax", "scale": 3.0}
    for block in convert(_model(), 5, IMAGES, blocks=2, **settings).local_layers:
        assert isinstance(block, SpelaBlock)
        assert {name: getattr(block, name) for name in settings} == settings


def _compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize("blocks", [None, 2])
@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (_compiled, "`model` is inside OptimizedModule: give `model._orig_mod`, and wrap"),
        (nn.DataParallel, "`model` is inside DataParallel: give `model.module`, and wrap"),
        (torch.jit.script, "`model` is of TorchScript: give the module that was scripted"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_a_network_inside_a_wrapper_is_refused_by_the_name_it_has_there(
    wrap: Any, said: str, blocks: int | None
) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(TypeError, match=said):
        convert(wrap(model), 3, torch.randn(5, 4), blocks=blocks)


@pytest.mark.parametrize("blocks", [None, 2])
def test_a_sample_that_is_no_tensor_is_refused(blocks: int | None) -> None:
    with pytest.raises(TypeError, match="`sample_input` must be a tensor, got ndarray"):
        convert(_model(), 5, IMAGES.numpy(), blocks=blocks)


def test_a_map_that_a_linear_layer_makes_is_read_as_a_map() -> None:
    """Its last axis may be as long as there are classes, and is none of theirs."""

    class Columns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(16, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(self.conv(x))

    net = convert(Columns(), 5, IMAGES, blocks=2)
    assert net.local_layers[-1].output_shape == (4, 16, 5)
    assert net(IMAGES).shape == (6, 5)
