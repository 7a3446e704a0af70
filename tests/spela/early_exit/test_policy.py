"""Early exit: costs by hand, thresholds against exhaustive search, compaction against layer scores."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from spela import (
    ExitPolicy,
    RowNorm,
    SpelaBlock,
    SpelaConv2d,
    SpelaLinear,
    SpelaSequential,
    calibrate_thresholds,
    multiply_adds,
    optim,
)
from spela.data import epoch_generator
from spela.early_exit import LayerCost, layer_costs, margin_and_label, mean_multiply_adds
from spela.early_exit.costs import count_multiply_adds
from spela.training import evaluate_early_exit

INF = math.inf


def _net(sizes: tuple[int, ...] = (24, 24, 24), seed: int = 0) -> SpelaSequential:
    g = torch.Generator().manual_seed(seed)
    modules: list[nn.Module] = []
    for before, size in itertools.pairwise((6, *sizes)):
        modules += [RowNorm(), SpelaLinear(before, size, 4, objective="softmax", generator=g)]
    return SpelaSequential(*modules)


def _blobs(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (rows,), generator=g)
    return torch.randn(rows, 6, generator=g) * 0.7 + 1.2 * torch.eye(6)[y], y


class _Recurrent(nn.LSTM):
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x)[0]


def test_attention_and_recurrent_layers_cost_their_products() -> None:
    encoder = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    attention = 16 * 32 * 32 * 4 + 2 * 16 * 16 * 32  # four projections; scores and weighted values
    for training in (True, False):  # an encoder in eval mode is one operation
        counted, _ = count_multiply_adds(encoder.train(training), torch.zeros(1, 16, 32))
        assert counted == attention + 2 * 16 * 32 * 64
    assert torch.backends.mha.get_fastpath_enabled()
    for first in (True, False):
        counted, _ = count_multiply_adds(_Recurrent(8, 6, batch_first=first), torch.zeros(5, 5, 8))
        assert counted == 25 * 4 * 6 * (8 + 6)
    block = SpelaBlock(encoder, 4, torch.randn(2, 16, 32), channels=0, hidden=0, projection=8)
    assert layer_costs(SpelaSequential(block), (16, 32))[0] == (
        attention + 2 * 16 * 32 * 64,
        32 * 8 + 8 * 4,
    )


def test_counting_leaves_graphs_and_networks_of_inference_mode_as_they_are() -> None:
    net = _net()
    loss = net.local_losses(torch.randn(5, 6), torch.arange(5) % 4).sum()
    expected = layer_costs(net, (6,))
    loss.backward()  # of class vectors that nothing has written into
    with torch.inference_mode():
        inference = nn.Sequential(nn.BatchNorm1d(6), *_net())
    assert layer_costs(inference, (6,)) == expected


@pytest.fixture(scope="module")
def trained() -> SpelaSequential:
    net, (x, y) = _net(), _blobs(400, 1)
    optimizer = optim.LocalAdam(net.parameters(), lr=3e-3)
    for _ in range(40):
        net.local_step(x, y, optimizer)
    return net.eval()


def test_costs_by_hand() -> None:
    net = SpelaSequential(
        nn.Conv2d(3, 2, 3),  # 8x8 -> 6x6: 6*6 * 2 * 3*3*3
        SpelaConv2d(2, 5, 3, 4, output_size=(2, 2), symmetric_dim=7, grouping=3),  # 4x4, pooled 2x2
        nn.Flatten(),
        nn.Sequential(nn.Linear(20, 11), nn.ReLU()),
        SpelaLinear(11, 9, 4),
    )
    conv = LayerCost(36 * 2 * 27 + 16 * 5 * 18, 5 * (4 * 7 + 7 * 3))
    linear = LayerCost(20 * 11 + 11 * 9, 9 * 4)
    assert layer_costs(net, (3, 8, 8)) == [conv, linear]
    assert multiply_adds(net, (3, 8, 8)) == [sum(conv), sum(conv) + sum(linear)]
    assert net[1].norm.num_batches_tracked == 0
    assert all(module.training for module in net.modules())
    with pytest.raises(ValueError, match="do not pass through the network"):
        multiply_adds(net, (3, 12, 8))
    with pytest.raises(ValueError, match="no SPELA layer"):
        multiply_adds(nn.Sequential(nn.Linear(2, 2)), (2,))


def test_a_policy_is_the_layers_own_answers(trained: SpelaSequential) -> None:
    x, _ = _blobs(300, 2)
    found = [margin_and_label(scores) for scores in trained.layer_scores(x)]
    first, second = (found[i][0].median().item() for i in (0, 1))
    at = torch.where(
        found[0][0] >= first, 0, torch.where(found[1][0] >= second, 1, 2)
    )  # (B,) layer that answers
    result = trained.predict_detailed(x, ExitPolicy((first, second)))
    assert at.bincount().min() > 10
    assert torch.equal(result.layer, at)
    rows = torch.arange(len(x))
    assert torch.equal(result.labels, torch.stack([label for _, label in found])[at, rows])
    expected = torch.stack([margin for margin, _ in found])[at, rows]
    torch.testing.assert_close(result.margin, expected)
    assert torch.equal(trained.predict(x, ExitPolicy((first, second))), result.labels)
    never = trained.predict_detailed(x, ExitPolicy((INF, INF)))
    assert torch.equal(never.labels, trained.predict(x))
    assert never.layer.unique().tolist() == [2]
    assert trained.predict_detailed(x).margin.equal(never.margin)


def test_samples_that_left_are_not_computed_and_unused_layers_not_scored(
    trained: SpelaSequential, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, _ = _blobs(300, 2)
    rows: list[int] = []
    for layer in trained.local_layers:
        hook = layer.register_forward_hook(lambda module, args, y: rows.append(len(y)))
        monkeypatch.setattr(layer, "unhook", hook, raising=False)
    at = trained.predict_detailed(x, 0.1).layer.bincount(minlength=3).tolist()
    assert rows == [300, 300 - at[0], at[2]]
    rows.clear()
    trained.predict_detailed(x, 0.0)
    assert rows == [300]  # nobody stays, so later layers do not run at all
    for layer in trained.local_layers:
        layer.unhook.remove()  # type: ignore[operator]

    def refuse(y: torch.Tensor) -> torch.Tensor:
        raise AssertionError("scored")

    monkeypatch.setattr(trained.local_layers[0], "scores", refuse)
    trained.predict_detailed(x, ExitPolicy((INF, 0.1)))
    with pytest.raises(AssertionError, match="scored"):
        trained.predict_detailed(x, ExitPolicy((0.1, 0.1)))


def test_an_empty_batch_has_an_empty_answer() -> None:
    result = _net().predict_detailed(torch.empty(0, 6), 0.1)
    assert result.labels.shape == result.margin.shape == result.layer.shape == (0,)


def test_mean_work_counts_only_scores_that_are_computed() -> None:
    costs = [LayerCost(100, 10), LayerCost(200, 20), LayerCost(400, 40)]
    layer = torch.tensor([0, 1, 2, 2])
    policy = ExitPolicy((0.1, 0.2))
    assert mean_multiply_adds(costs, policy, layer) == (110 + 330 + 2 * 770) / 4
    assert mean_multiply_adds(costs, None, torch.tensor([2])) == 740
    assert mean_multiply_adds(costs, ExitPolicy((INF, 0.2)), torch.tensor([1])) == 320


@pytest.mark.parametrize("max_loss", [0.0, 0.02, 0.1])
def test_calibration_is_close_to_exhaustive_search(
    trained: SpelaSequential, max_loss: float
) -> None:
    x, y = _blobs(150, 3)
    costs = layer_costs(trained, (6,))
    full = (trained.predict(x) == y).double().mean()

    def outcome(policy: ExitPolicy) -> tuple[float, float]:
        found = trained.predict_detailed(x, policy)
        loss = full - (found.labels == y).double().mean()
        return mean_multiply_adds(costs, policy, found.layer), loss.item()

    margins = [margin_and_label(s)[0] for s in trained.layer_scores(x)[:2]]
    grid = [[*m.sort().values[::4].tolist(), INF] for m in margins]
    tried = [outcome(ExitPolicy(pair)) for pair in itertools.product(*grid)]
    least = min(cost for cost, loss in tried if loss <= max_loss + 1e-9)
    cost, loss = outcome(calibrate_thresholds(trained, x, y, max_loss, credit_gains=True))
    whole = mean_multiply_adds(costs, None, torch.tensor([2]))
    assert loss <= max_loss + 1e-9
    assert cost <= least + 0.03 * whole
    assert cost < 0.9 * whole
    policy = calibrate_thresholds(trained, x, y, max_loss)
    right = trained.predict(x) == y
    lost = right & (trained.predict(x, policy) != y)
    assert lost.double().mean() <= max_loss + 1e-9  # and not only what gains leave of it
    assert outcome(policy)[0] >= cost


def test_calibration_leaves_the_mode_and_finds_no_exit_where_there_is_none() -> None:
    net, (x, y) = _net((24, 24)), _blobs(100, 4)
    net.train()
    # The first layer is always wrong against the last one's answers turned round.
    target = net.predict(x)
    wrong = net.layer_scores(x)[0].argmax(1) != target
    policy = calibrate_thresholds(net, x[wrong], target[wrong], 0.0)
    assert net.training
    assert policy.thresholds == (INF,)
    one = SpelaSequential(SpelaLinear(6, 8, 4))
    assert calibrate_thresholds(one, x, y).thresholds == ()
    assert one.predict(x, ExitPolicy(())).equal(one.predict(x))


def test_evaluation_measures_each_half_under_the_others_thresholds(
    trained: SpelaSequential,
) -> None:
    x, y = _blobs(400, 5)
    found = evaluate_early_exit(trained, x, y, 0.1, seed=3, batch_size=64, repeats=1)
    assert sum(found.leaving) == 400
    assert 0.05 < found.saved < 1
    halves = torch.randperm(400, generator=epoch_generator(3, 0)).tensor_split(2)
    assert found.policies[0] == calibrate_thresholds(trained, x[halves[1]], y[halves[1]], 0.1)
    hits = [
        trained.predict(x[half], policy) == y[half]
        for half, policy in zip(halves, found.policies, strict=True)
    ]
    assert found.accuracy == torch.cat(hits).double().mean().item()
    assert found.full_accuracy == (trained.predict(x) == y).double().mean().item()
    assert found.full_multiply_adds == sum(c.forward for c in layer_costs(trained, (6,))) + 24 * 4
    assert min(found.seconds, found.full_seconds) > 0


def test_wrong_arguments(trained: SpelaSequential) -> None:
    x, y = _blobs(10, 6)
    with pytest.raises(ValueError, match="has 1 thresholds, the network needs 2"):
        trained.predict(x, ExitPolicy((0.1,)))
    with pytest.raises(ValueError, match="must be numbers"):
        trained.predict(x, math.nan)
    with pytest.raises(ValueError, match="must be a share"):
        calibrate_thresholds(trained, x, y, -0.1)
    with pytest.raises(ValueError, match="at least one"):
        calibrate_thresholds(trained, x[:0], y[:0])
    with pytest.raises(ValueError, match="must hold the same samples"):
        calibrate_thresholds(trained, x, y[:3])
    with pytest.raises(ValueError, match=r"labels 0\.\."):
        calibrate_thresholds(trained, x, y + 100)
    with pytest.raises(TypeError, match="must be int64"):
        calibrate_thresholds(trained, x, y.int())
    with pytest.raises(ValueError, match="must end in a SPELA layer, got ReLU"):
        calibrate_thresholds(nn.Sequential(*trained, nn.ReLU()), x, y)
    with pytest.raises(ValueError, match="at least two samples"):
        evaluate_early_exit(trained, x[:1], y[:1])


def test_costs_pass_through_the_networks_own_hooks_and_take_tokens() -> None:
    net = SpelaSequential(SpelaLinear(12, 8, 3), SpelaLinear(8, 8, 3))
    net.register_forward_pre_hook(lambda module, args: (args[0].flatten(1),))
    x, y = torch.randn(9, 3, 4), torch.arange(9) % 3
    assert len(calibrate_thresholds(net, x, y).thresholds) == 1
    tokens = torch.arange(18).reshape(9, 2)
    block = SpelaBlock(nn.Embedding(18, 6), 3, tokens)
    words = SpelaSequential(block, SpelaBlock(nn.Linear(6, 6), 3, torch.randn(2, 2, 6)))
    assert len(calibrate_thresholds(words, tokens, y).thresholds) == 1


@pytest.mark.parametrize("classes", [2, 5, 10, 50])
def test_of_equal_scores_the_first_class_answers_everywhere(classes: int) -> None:
    net = SpelaSequential(SpelaLinear(4, 64, classes, bias=False))
    x = torch.zeros(3, 4)  # an output without a direction
    assert net.predict(x).tolist() == [0, 0, 0]
    assert net.predict_detailed(x).labels.tolist() == [0, 0, 0]


@pytest.mark.parametrize("threshold", ["0.1", True, [0.1], b"1", torch.ones(2)])
def test_what_is_no_number_is_no_threshold(threshold: object) -> None:
    net, x = _net(), torch.randn(5, 6)
    with pytest.raises(TypeError, match="`exit_threshold` must be numbers, such as 0"):
        net.predict_detailed(x, threshold)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`thresholds` must be numbers"):
        ExitPolicy((0.1, threshold))  # type: ignore[arg-type]
    number = torch.tensor(0.25)
    assert torch.equal(net.predict_detailed(x, number).labels, net.predict_detailed(x, 0.25).labels)


def test_a_single_number_is_no_policy() -> None:
    with pytest.raises(TypeError, match=r"one number a layer, got 0\.3: as exit_threshold"):
        ExitPolicy(0.3)  # type: ignore[arg-type]


def test_a_limit_that_is_no_number_is_named(trained: SpelaSequential) -> None:
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
    with pytest.raises(TypeError, match=r"`max_loss` must be a number, such as 0\.002"):
        calibrate_thresholds(trained, x, y, "a tenth")  # type: ignore[arg-type]
