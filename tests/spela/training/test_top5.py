"""Top-5 accuracy, and the initialisation of the transfer recipes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from spela.experiments import build_network, make_config
from spela.layers import SpelaLinear
from spela.training import RunConfig, evaluate


class _Fixed(nn.Module):
    """Two layers whose scores are the inputs, and the inputs with their sign turned."""

    def layer_scores(self, x: Tensor) -> list[Tensor]:
        return [x, -x]

    def local_step(self, x: Tensor, target: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        raise NotImplementedError


def test_the_class_among_the_five_best_of_every_layer() -> None:
    x = torch.arange(7.0).repeat(2100, 1)  # best class 6; the five best are 2..6, turned 0..4
    y = torch.tensor([6, 2, 1, 0, 4, 5, 3]).repeat(300)
    result = evaluate(_Fixed(), x, y)
    assert result.accuracy == pytest.approx([1 / 7, 1 / 7])
    assert result.top5_accuracy == pytest.approx([5 / 7, 5 / 7])
    turned = evaluate(_Fixed(), x, torch.zeros_like(y))
    assert turned.top5_accuracy == [0.0, 1.0]


def test_five_classes_have_no_top5() -> None:
    assert evaluate(_Fixed(), torch.eye(5), torch.arange(5)).top5_accuracy is None


def test_kaiming_normal() -> None:
    draws = {
        name: SpelaLinear(
            200, 500, 10, init=name, generator=torch.Generator().manual_seed(0)
        ).weight.detach()
        for name in ("kaiming_uniform", "kaiming_normal")
    }
    for weight in draws.values():
        assert float(weight.std()) == pytest.approx(math.sqrt(2 / 200), rel=0.01)
    bound = math.sqrt(6 / 200)
    assert draws["kaiming_uniform"].abs().max() <= bound
    beyond = (draws["kaiming_normal"].abs() > bound).double().mean()  # sqrt(3) deviations
    assert float(beyond) == pytest.approx(math.erfc(math.sqrt(1.5)), rel=0.1)
    with pytest.raises(ValueError, match="`init` must be one of kaiming_uniform, kaiming_normal"):
        SpelaLinear(4, 4, 2, init="xavier")


def test_biases_start_as_the_recipe_says() -> None:
    net = build_network(make_config("digits", "tmlr", layers=(4000,)), (50,), 10)
    bias, weight = net[-1].bias.detach(), net[-1].weight.detach()
    bound = 1 / math.sqrt(50)  # nn.Linear's
    assert float(bias.abs().max()) <= bound
    assert float(bias.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    zeros = build_network(make_config("digits", "best", layers=(4000,)), (50,), 10)
    assert not zeros[-1].bias.any()
    # Drawn after the layer's weights, which stay those of the seed.
    config = make_config("digits", "tmlr", layers=(4000,), bias_init="default")
    assert torch.equal(build_network(config, (50,), 10)[-1].weight, weight)
    head = build_network(make_config("digits", "cnn", model="cnn", layers=(10,)), (1, 28, 28), 10)
    assert float(head[-1].weight.detach().std()) == pytest.approx(math.sqrt(2 / 2048), rel=0.05)
    assert head[-1].weight.abs().max() > math.sqrt(6 / 2048)  # normal, not uniform
    assert head[-1].bias.all()
    with pytest.raises(ValueError, match="`bias_init` must be one of zeros, uniform"):
        SpelaLinear(4, 4, 2, bias_init="ones")


def test_settings_at_their_default_leave_older_runs_their_name() -> None:
    config = make_config("digits", "best")
    settings = config.to_dict()
    assert "bias_init" not in settings
    assert "share_groups" not in settings
    assert RunConfig.from_dict(settings) == config
    other = make_config("digits", "tmlr")
    assert other.to_dict()["bias_init"] == "uniform"
    assert RunConfig.from_dict(other.to_dict()) == other
    with pytest.raises(ValueError, match="missing or unknown settings: lr"):
        RunConfig.from_dict({k: v for k, v in settings.items() if k != "lr"})


@pytest.mark.parametrize("recipe", ["transfer", "transfer-backprop"])
def test_transfer_networks_start_with_kaiming_normal(recipe: str) -> None:
    net = build_network(make_config("digits", recipe), (1280,), 10)
    linear = [m for m in net.modules() if isinstance(m, nn.Linear)]
    assert [m.out_features for m in linear][:2] == [512, 64]
    assert float(linear[0].weight.detach().std()) == pytest.approx(math.sqrt(2 / 1280), rel=0.01)
    assert linear[0].weight.abs().max() > 1.5 * math.sqrt(6 / 1280)
    assert not linear[0].bias.any()
    again = build_network(make_config("digits", recipe), (1280,), 10)
    assert torch.equal(again.state_dict()["1.weight"], net.state_dict()["1.weight"])
