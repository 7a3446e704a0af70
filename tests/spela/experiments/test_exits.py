"""The early-exit experiment: answers, costs and accuracies are those of the network's own `predict`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spela.data import load_dataset, prepare
from spela.early_exit import ExitPolicy, calibrate_thresholds, layer_costs, mean_multiply_adds
from spela.early_exit.policy import margin_and_label
from spela.experiments import exits
from spela.experiments.declare import Experiment, Row
from spela.experiments.plan import Options
from spela.experiments.reproduce import reproduce
from spela.layers import SpelaLinear
from spela.network import SpelaSequential
from spela.optim import LocalAdam


def test_of_equal_scores_the_first_class_is_the_answer_as_in_predict() -> None:
    generator = torch.Generator().manual_seed(0)
    net = SpelaSequential(
        SpelaLinear(4, 8, 10, generator=generator), SpelaLinear(8, 8, 10, generator=generator)
    )
    x = torch.randn(7, 4, generator=generator)
    x[:5] = 0  # no direction: every class scores 0
    margins, answers = exits._margins(net, x)
    assert margins.shape == answers.shape == (2, 7)
    assert torch.equal(answers[-1], net.predict(x))
    assert torch.equal(answers[:, :5], torch.zeros(2, 5, dtype=torch.int64))
    for layer, scores in enumerate(net.layer_scores(x)):
        assert torch.equal(margins[layer], margin_and_label(scores)[0])


def test_every_point_is_what_the_network_answers_and_costs() -> None:
    g = torch.Generator().manual_seed(0)
    net = SpelaSequential(
        *(SpelaLinear(n, 12, 4, objective="softmax", generator=g) for n in (6, 12, 12))
    )
    y = torch.randint(4, (600,), generator=g)
    x = torch.randn(600, 6, generator=g) + torch.eye(6)[y]
    optimizer = LocalAdam(net.parameters(), lr=1e-2)
    for _ in range(20):
        net.local_step(x[:200], y[:200], optimizer)
    held_out, test = (x[200:400], y[200:400]), (x[400:], y[400:])
    sweep, chosen = exits._exits(net.eval(), held_out, test)
    policy = calibrate_thresholds(net, *held_out, max_loss=0.002)
    assert chosen["thresholds"] == [t if t < 9 else None for t in policy.thresholds]
    right = (net.predict(test[0]) == test[1]).double().mean().item()
    assert chosen["full_accuracy"] == pytest.approx(100 * right)
    prices = layer_costs(net, (6,))
    whole = mean_multiply_adds(prices, None, torch.tensor([2]))
    assert [point["threshold"] for point in sweep] == list(exits.THRESHOLDS)
    for point, at in [(chosen, policy), *((p, p["threshold"]) for p in sweep)]:
        found = net.predict_detailed(test[0], at)
        hits = (found.labels == test[1]).double().mean().item()
        assert point["accuracy"] == pytest.approx(100 * hits)
        work = mean_multiply_adds(prices, at if at is policy else ExitPolicy((at, at)), found.layer)
        assert point["multiply_adds"] == pytest.approx(work / whole)
        assert point["exits"] == (found.layer.bincount(minlength=3).double() / 200).tolist()
    assert sweep[0]["exits"] == [1, 0, 0]


def test_no_sample_is_measured_that_chose_the_thresholds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(exits, "_exits", lambda net, *parts: seen.append(parts) or ([], {}))
    row = Row("best", "best", settings={"layers": (8, 8), "epochs": 1})
    experiment = Experiment("early-exit", "A test", ("digits",), (row,), measure="exits")
    reproduce(experiment, Options(tmp_path, seeds=(0,)))
    data = load_dataset("digits")
    x, y = prepare(data.test_x), data.test_y
    ((held_out, test),) = seen
    for found, expected in zip((*held_out, *test), (x[1::2], y[1::2], x[::2], y[::2]), strict=True):
        assert torch.equal(found, expected)


def test_thresholds_are_chosen_by_the_held_out_part_and_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def calibrated(net: SpelaSequential, *given: torch.Tensor, max_loss: float) -> ExitPolicy:
        calls.append((*given, max_loss))
        return ExitPolicy((0.5,))

    monkeypatch.setattr(exits, "calibrate_thresholds", calibrated)
    net = SpelaSequential(SpelaLinear(4, 8, 3), SpelaLinear(8, 8, 3))
    held_out, test = [(torch.randn(9, 4), torch.arange(9) % 3) for _ in range(2)]
    _, chosen = exits._exits(net, held_out, test)
    ((x, y, bound),) = calls
    assert (x is held_out[0], y is held_out[1], bound) == (True, True, 0.002)
    assert chosen["thresholds"] == [0.5]
