"""The early-exit experiment: answers and costs are those of `predict`, of all test samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spela.data import load_dataset, prepare
from spela.early_exit import ExitPolicy, layer_costs, mean_multiply_adds
from spela.experiments import exits
from spela.experiments.declare import Experiment, Row
from spela.experiments.plan import Options
from spela.experiments.reproduce import reproduce
from spela.layers import SpelaLinear
from spela.network import SpelaSequential
from spela.optim import LocalAdam
from spela.training import ExitEvaluation


def test_every_point_is_what_the_network_answers_and_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exits, "_BATCH", 64)
    g = torch.Generator().manual_seed(0)
    net = SpelaSequential(
        *(SpelaLinear(n, 12, 4, objective="softmax", generator=g) for n in (6, 12, 12))
    )
    y = torch.randint(4, (400,), generator=g)
    x = torch.randn(400, 6, generator=g) + torch.eye(6)[y]
    optimizer = LocalAdam(net.parameters(), lr=1e-2)
    for _ in range(20):
        net.local_step(x[:200], y[:200], optimizer)
    x, y = x[200:], y[200:]
    sweep, _ = exits._exits(net.eval(), x, y)
    prices = layer_costs(net, (6,))
    whole = mean_multiply_adds(prices, None, torch.tensor([2]))
    assert [point["threshold"] for point in sweep] == list(exits.THRESHOLDS)
    for point in sweep:
        policy = ExitPolicy((point["threshold"],) * 2)
        found = net.predict_detailed(x, policy)
        hits = (found.labels == y).double().mean().item()
        assert point["accuracy"] == pytest.approx(100 * hits)
        work = mean_multiply_adds(prices, policy, found.layer)
        assert point["multiply_adds"] == pytest.approx(work / whole)
        assert point["exits"] == (found.layer.bincount(minlength=3).double() / 200).tolist()
    assert sweep[0]["exits"] == [1, 0, 0]
    assert 0 < sweep[5]["exits"][0] < 1


def test_the_halves_are_those_of_the_evaluation_on_all_test_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = (ExitPolicy((0.25,)), ExitPolicy((torch.inf,)))
    evaluation = ExitEvaluation(policies, 0.875, 0.9, 600.0, 800.0, 0.125, 0.5, [100, 260])
    calls = []

    def evaluate(net: SpelaSequential, *given: object, batch_size: int) -> ExitEvaluation:
        calls.append((*given, batch_size))
        return evaluation

    monkeypatch.setattr(exits, "evaluate_early_exit", evaluate)
    row = Row("best", "best", settings={"layers": (8, 8), "epochs": 1})
    experiment = Experiment("early-exit", "A test", ("digits",), (row,), measure="exits")
    (found,) = reproduce(experiment, Options(tmp_path, seeds=(0,)))["measured"]["halves"]
    data = load_dataset("digits")
    ((x, y, bound, batch_size),) = calls
    assert torch.equal(x, prepare(data.test_x))
    assert torch.equal(y, data.test_y)
    assert (bound, batch_size) == (0.002, 1000)
    expected = {
        "thresholds": [[0.25], [None]],
        "accuracy": 87.5,
        "full_accuracy": 90.0,
        "multiply_adds": 0.75,
        "exits": [count / len(y) for count in (100, 260)],
        "ms": 125.0,
        "full_ms": 500.0,
    }
    assert found.items() >= expected.items()
