"""Binary weights: two values, latent ones that learn, and every way a network with them is used."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from spela.data import Dataset
from spela.experiments import build_network, load_run, make_config, run
from spela.layers import BinaryWeight, SpelaLinear, with_binary_weight
from spela.optim import LocalAdam, LocalSGD


def _data() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.randn(60, 8, generator=generator) + 3 * torch.eye(8)[y]
    return Dataset("clusters", x, y, x, y, num_classes=3, class_names=("a", "b", "c"))


def test_the_gradient_passes_through_except_outwards_beyond_the_limit() -> None:
    binary = BinaryWeight(in_features=6)  # scale 1/sqrt(3), limit 1
    latent = torch.tensor([[0.5, -0.5, 0.0, 1.0, 1.0, -2.0]], requires_grad=True)
    value = binary(latent)
    assert torch.allclose(value * math.sqrt(3), torch.tensor([[1.0, -1, 1, 1, 1, -1]]))
    (value * torch.tensor([[1.0, 2.0, 3.0, 1.0, -1.0, 1.0]])).sum().backward()
    # A step goes against the gradient: the fifth weight would go further out, and so would the last.
    assert latent.grad is not None
    assert latent.grad.tolist() == [[1.0, 2.0, 3.0, 1.0, 0.0, 0.0]]


@pytest.mark.parametrize("optimizer", [LocalSGD, LocalAdam, torch.optim.SGD])
@pytest.mark.parametrize("grad_mode", [True, False])
def test_a_step_moves_the_latent_weight(optimizer: type, grad_mode: bool) -> None:
    layer = with_binary_weight(SpelaLinear(8, 6, 3))
    latent = layer.parametrizations.weight.original
    before = latent.detach().clone()
    data = _data()
    chosen = optimizer(layer.parameters(), lr=0.01)
    with torch.set_grad_enabled(grad_mode):
        layer.local_step(data.train_x, data.train_y, chosen)
    change = (latent.detach() - before).abs()
    assert 0 < float(change.max()) < 1
    assert set(layer.weight.detach().unique().tolist()) == {-0.5, 0.5}


def test_the_step_is_the_latent_step_of_autograd() -> None:
    layer = with_binary_weight(SpelaLinear(8, 6, 3, generator=torch.Generator().manual_seed(1)))
    latent = layer.parametrizations.weight.original
    data = _data()
    loss, _ = layer.local_loss(data.train_x, data.train_y)
    (gradient,) = torch.autograd.grad(loss, latent)
    expected = latent.detach() - 0.1 * gradient
    layer.local_step(data.train_x, data.train_y, LocalSGD(layer.parameters(), lr=0.1))
    assert torch.allclose(latent.detach(), expected, atol=1e-7)


def test_a_binary_network_learns_is_saved_and_loaded(tmp_path: Path) -> None:
    config = make_config(
        "x", "tmlr", layers=(16, 16), activation="tanh", epochs=20, batch_size=10, binarise="all"
    )
    summary = run(config, _data(), tmp_path / "run")
    assert min(summary["test_accuracy"]) > 0.8
    net = load_run(tmp_path / "run").net
    assert len(net[1].weight.unique()) == 2
    assert len(net[1].parametrizations.weight.original.unique()) > 2


def test_the_authors_variant_signs_the_last_layer_only(tmp_path: Path) -> None:
    config = make_config("x", "tmlr", layers=(16, 16), epochs=2, binarise="last")
    run(config, _data(), tmp_path / "run")
    net = load_run(tmp_path / "run").net
    assert set(net[2].weight.detach().unique().tolist()) == {-1.0, 1.0}
    assert len(net[1].weight.unique()) > 2


@pytest.mark.parametrize("settings", [{"method": "backprop"}, {"channels": (4,)}])
def test_binary_weights_are_refused_where_they_mean_nothing(settings: dict) -> None:
    model = "cnn" if "channels" in settings else "mlp"
    with pytest.raises(ValueError, match="binarise is for SPELA's linear layers"):
        make_config("x", "best", model=model, binarise="all", **settings)


def test_input_dropout_stands_before_everything_else() -> None:
    config = make_config("x", "best", layers=(6,), input_dropout=0.5)
    net = build_network(config, (1, 4, 4), 3)
    assert isinstance(net[0], torch.nn.Dropout)
    assert net[0].p == 0.5
    net.eval()
    assert net(torch.randn(2, 1, 4, 4)).shape == (2, 3)
