"""SpelaSequential: order of learning, classification at every layer, equality of its two ways to train."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from spela import (
    Frozen,
    RowNorm,
    SpelaBlock,
    SpelaLinear,
    SpelaSequential,
    calibrate_thresholds,
    convert,
    optim,
)
from spela.training import batch_statistics, evaluate
from spela.training.evaluate import batch_statistics_accuracy
from tests.spela.fused_steps import check_network_steps


def _net(dropout: float = 0.0) -> SpelaSequential:
    g = torch.Generator().manual_seed(0)
    return SpelaSequential(
        nn.Flatten(),
        RowNorm("rms"),
        SpelaLinear(12, 16, 5, generator=g),
        nn.Dropout(dropout),
        SpelaLinear(16, 9, 5, objective="softmax", generator=g),
    )


def _batch(rows: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(rows, 3, 4, generator=g), torch.randint(5, (rows,), generator=g)


def test_is_an_ordinary_classifier() -> None:
    net, (x, _) = _net(), _batch()
    scores = net(x)
    assert scores.shape == (20, 5)
    assert torch.equal(net.predict(x), scores.argmax(dim=1))
    per_layer = net.layer_scores(x)
    assert torch.equal(per_layer[-1], scores)
    hidden = net[2](net[1](net[0](x)))
    torch.testing.assert_close(per_layer[0], net[2].scores(hidden))
    assert isinstance(net[:3], SpelaSequential)
    assert torch.equal(net[:3](x), per_layer[0])
    torch.testing.assert_close(net.mean_scores(x), (per_layer[0] + per_layer[1]) / 2)


def test_local_step_equals_summed_losses_under_torch_sgd() -> None:
    x, target = _batch()
    check_network_steps(_net().double(), x.double(), target, rtol=1e-10)


def test_gradients_are_local() -> None:
    net, (x, target) = _net(), _batch()
    x.requires_grad_()
    losses = net.local_losses(x, target)
    losses[1].backward()
    assert not net[2].weight.grad.any()
    assert net[4].weight.grad.any()
    assert x.grad is None


def test_next_layer_sees_the_output_from_before_the_update() -> None:
    x, target = _batch()
    net, reference = _net(), _net()
    optimizer = optim.LocalSGD(net.parameters(), lr=5.0)
    losses = net.local_step(x, target, optimizer)
    torch.testing.assert_close(losses, reference.local_losses(x, target).detach())


@pytest.mark.parametrize("mode", [True, False])
def test_train_and_eval_reach_the_modules_in_between(mode: bool) -> None:
    net, (x, _) = _net(dropout=0.5).train(mode), _batch()
    assert torch.equal(net(x), net(x)) is not mode


def test_early_exit_answers_by_the_first_sure_layer() -> None:
    net, (x, _) = _net(), _batch(200)
    first, last = net.layer_scores(x)
    top = first.topk(2, dim=1).values
    margin = top[:, 0] - top[:, 1]
    threshold = margin.median().item()
    expected = torch.where(margin >= threshold, first.argmax(1), last.argmax(1))
    assert torch.equal(net.predict(x, exit_threshold=threshold), expected)
    assert torch.equal(net.predict(x, exit_threshold=0.0), first.argmax(1))
    assert torch.equal(net.predict(x, exit_threshold=9.0), net.predict(x))
    assert (expected != last.argmax(1)).any()
    # What is no number is never sure.
    found = net.predict_detailed(torch.cat([x[:3], torch.full_like(x[:2], torch.nan)]), 0.0)
    assert found.layer.tolist() == [0, 0, 0, 1, 1]


def test_a_network_learns_digits() -> None:
    from spela.data import load_dataset

    data = load_dataset("digits")
    g = torch.Generator().manual_seed(0)
    net = SpelaSequential(
        nn.Flatten(),
        SpelaLinear(64, 256, 10, objective="softmax", generator=g),
        SpelaLinear(256, 256, 10, objective="softmax", generator=g),
    )
    optimizer = optim.LocalAdam(net.parameters(), lr=3e-3)
    for _ in range(100):
        net.local_step(data.train_x, data.train_y, optimizer)
    for scores in net.layer_scores(data.test_x):
        assert (scores.argmax(1) == data.test_y).double().mean() > 0.9


def test_compile_of_the_local_losses() -> None:
    net, (x, target) = _net(), _batch()
    expected = net.local_losses(x, target)
    compiled = torch.compile(net.local_losses, fullgraph=True)
    losses = compiled(x, target)
    torch.testing.assert_close(losses, expected)
    losses.sum().backward()
    assert net[2].weight.grad is not None


def test_modules_that_nothing_would_use_are_refused() -> None:
    with pytest.raises(ValueError, match="last module must be a SPELA layer, got Dropout"):
        SpelaSequential(SpelaLinear(3, 4, 2), nn.Dropout())(torch.randn(1, 3))
    with pytest.raises(ValueError, match="got nothing"):
        SpelaSequential()(torch.randn(1, 3))


def test_layers_of_other_classes_are_refused_before_one_learns() -> None:
    net = SpelaSequential(SpelaLinear(4, 8, 5), SpelaLinear(8, 8, 3))
    before = net[0].weight.clone()
    with pytest.raises(ValueError, match=r"layers of 5 and of 3 classes .* the same num_classes"):
        net.local_step(torch.randn(5, 4), torch.arange(5), optim.LocalSGD(net.parameters(), 0.1))
    assert torch.equal(net[0].weight, before)


def test_layers_that_would_not_learn_are_refused() -> None:
    inner = nn.Sequential(SpelaLinear(3, 4, 2), RowNorm())
    net, (x, target) = (
        SpelaSequential(inner, SpelaLinear(4, 4, 2)),
        (torch.randn(2, 3), torch.tensor([0, 1])),
    )
    with pytest.raises(
        ValueError, match="SpelaLinear is inside Sequential, where it would not learn"
    ):
        net.local_step(x, target, optim.LocalSGD(net.parameters(), lr=0.1))
    frozen = SpelaSequential(Frozen(inner), SpelaLinear(4, 4, 2))
    before = inner[0].weight.clone()
    frozen.local_step(x, target, optim.LocalSGD(frozen.parameters(), lr=0.1))
    assert torch.equal(inner[0].weight, before)


def test_row_norm() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(RowNorm("unit")(x), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    torch.testing.assert_close(RowNorm("rms")(x)[0].norm(), torch.tensor(2.0).sqrt())
    with pytest.raises(ValueError, match="'unit' or 'rms'"):
        RowNorm("l1")


def test_pre_hooks_of_the_network_change_what_every_method_sees() -> None:
    x, target = _batch()
    plain, hooked = _net().eval(), _net().eval()
    hooked.register_forward_pre_hook(lambda module, args: (-args[0],))
    torch.testing.assert_close(hooked(x), plain(-x))
    for found, expected in zip(hooked.layer_scores(x), plain.layer_scores(-x), strict=True):
        torch.testing.assert_close(found, expected)
    assert torch.equal(hooked.predict(x, 0.3), plain.predict(-x, 0.3))
    torch.testing.assert_close(hooked.local_losses(x, target), plain.local_losses(-x, target))
    policy = calibrate_thresholds(hooked, x, target, max_loss=0.1)
    assert policy == calibrate_thresholds(plain, -x, target, max_loss=0.1)
    for net, batch in ((hooked, x), (plain, -x)):
        net.local_step(batch, target, optim.LocalSGD(net.parameters(), lr=0.5))
    assert torch.equal(hooked[2].weight, plain[2].weight)


def test_in_place_modules_inside_others_leave_a_layers_output_for_its_gradient() -> None:
    def net(in_place: bool) -> SpelaSequential:
        g = torch.Generator().manual_seed(0)
        between = nn.Sequential(nn.ReLU(inplace=in_place), nn.Identity())
        last = SpelaLinear(16, 9, 5, generator=g)
        return SpelaSequential(SpelaLinear(12, 16, 5, generator=g), between, last)

    x, target = _batch()
    gradients = []
    for in_place in (False, True):
        built = net(in_place)
        built.local_losses(x.flatten(1), target).sum().backward()
        gradients.append(built[0].weight.grad)
    assert torch.equal(*gradients)


def test_looking_at_a_network_leaves_every_modules_mode() -> None:
    x, target = _batch()
    net = _net(0.5).train()
    net[3].eval()
    modes = [module.training for module in net.modules()]
    calibrate_thresholds(net, x, target)
    evaluate(net, x, target)
    assert [module.training for module in net.modules()] == modes


def test_batch_statistics_are_those_of_every_batch_norm() -> None:
    norm = nn.BatchNorm1d(3).eval()
    norm.running_mean.fill_(5.0)
    x = torch.randn(8, 3)
    with batch_statistics(nn.Sequential(norm)):
        torch.testing.assert_close(norm(x).mean(dim=0), torch.zeros(3), rtol=0, atol=1e-6)
    assert norm.running_mean.tolist() == [5.0] * 3


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 9])
def test_no_sample_is_normalised_alone(count: int) -> None:
    norm = nn.BatchNorm1d(3)
    net = SpelaSequential(norm, SpelaLinear(3, 8, 3))
    x, target = torch.randn(count, 3), torch.zeros(count, dtype=torch.int64)
    found = batch_statistics_accuracy(net, x, target, batch_size=2)
    assert found is None if count == 1 else 0 <= found[0] <= 1
    with pytest.raises(ValueError, match="at least one"):
        evaluate(net, x[:0], target[:0])


def test_the_batch_is_the_callers_also_where_a_block_hands_on_a_view_of_it() -> None:
    x, target = torch.randn(6, 3, 4), torch.tensor([0, 1, 2] * 2)
    kept = x.clone()
    net = SpelaSequential(
        SpelaBlock(nn.Flatten(), 3, x), nn.ReLU(inplace=True), SpelaLinear(12, 8, 3)
    )
    net.local_step(x, target, optim.LocalSGD(net.parameters(), lr=0.1))
    net.local_losses(x, target).sum().backward()
    assert torch.equal(x, kept)


def test_scoring_leaves_the_batch_of_a_network_that_begins_in_place() -> None:
    x, target = torch.randn(6, 4), torch.tensor([0, 1, 2] * 2)
    net = SpelaSequential(
        nn.ELU(inplace=True), SpelaLinear(4, 8, 3), nn.ELU(inplace=True), SpelaLinear(8, 8, 3)
    )
    kept = x.clone()
    calibrate_thresholds(net, x, target, max_loss=0.1)
    for call in (net, net.layer_scores, net.predict, lambda x: net.predict(x, 0.1)):
        call(x)
    convert(nn.Sequential(nn.Linear(4, 3)), 3, x, frozen=nn.ReLU(inplace=True))
    assert torch.equal(x, kept)
    sum(scores.sum() for scores in net.layer_scores(x)).backward()
    assert net[1].weight.grad is not None


@pytest.mark.parametrize("method", ["local_step", "local_losses"])
def test_a_label_that_is_no_class_is_found_before_a_norm_remembers_the_batch(method: str) -> None:
    net = SpelaSequential(nn.BatchNorm1d(4), SpelaLinear(4, 8, 3))
    rest = [optim.LocalSGD(net.parameters(), lr=0.1)] if method == "local_step" else []
    with pytest.raises(ValueError, match=r"labels 0\.\.2, got 7"):
        getattr(net, method)(torch.randn(3, 4), torch.tensor([0, 7, 1]), *rest)
    assert net[0].num_batches_tracked == 0
    assert net[0].running_mean.tolist() == [0.0] * 4


def test_rows_of_zeros_stay_zeros_in_float16() -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float16)
    for norm, expected in (("unit", [0.6, 0.8]), ("rms", [0.6 * 2**0.5, 0.8 * 2**0.5])):
        y = RowNorm(norm)(x)
        assert torch.equal(y, torch.tensor([[0.0, 0.0], expected], dtype=torch.float16))


def test_an_array_is_refused_in_place_of_a_batch_that_is_to_be_classified() -> None:
    net = _net()
    for method in (net.predict, net.predict_detailed):
        with pytest.raises(
            TypeError, match=r"`x` must be a tensor, got ndarray: use torch\.as_tensor"
        ):
            method(np.zeros((2, 12), np.float32))


def test_pixels_are_refused_with_a_way_out() -> None:
    pixels = torch.zeros(2, 12, dtype=torch.uint8)
    net = SpelaSequential(RowNorm(), SpelaLinear(12, 8, 3))
    with pytest.raises(
        TypeError, match=r"`x` is torch.uint8: convert it, pixels by x.float\(\) / 255"
    ):
        net.predict(pixels)


def test_a_layers_line_says_what_its_gradient_depends_on() -> None:
    assert "negative_slope=0.001, objective=log)" in repr(SpelaLinear(4, 8, 3))
    line = repr(SpelaLinear(4, 8, 3, activation="gelu", objective="softmax"))
    assert "activation=gelu, objective=softmax, scale=20.0)" in line
