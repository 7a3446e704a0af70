"""fit_temperature: the maximum of the likelihood it says it finds."""

from __future__ import annotations

import pytest
import torch

from spela.estimator.calibration import fit_temperature


def _smoothed_loss(scores: torch.Tensor, target: torch.Tensor, temperature: float) -> float:
    n, classes = scores.shape
    wanted = torch.full((n, classes), 1 / (classes * (n + 1)), dtype=torch.float64)
    wanted[torch.arange(n), target] += n / (n + 1)
    return float(-(wanted * torch.log_softmax(scores / temperature, dim=1)).sum(1).mean())


def test_no_other_temperature_is_more_likely() -> None:
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 5, generator=g, dtype=torch.float64)
    target = torch.where(torch.rand(200, generator=g) < 0.7, scores.argmax(1), 2)
    found = fit_temperature(scores, target)
    least = _smoothed_loss(scores, target, found)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert _smoothed_loss(scores, target, found * factor) > least


def test_it_finds_the_temperature_that_drew_the_labels() -> None:
    g = torch.Generator().manual_seed(0)
    scores = torch.rand(50_000, 4, generator=g)
    target = torch.softmax(scores / 0.2, dim=1).multinomial(1, generator=g)[:, 0]
    assert fit_temperature(scores, target) == pytest.approx(0.2, rel=0.03)


def test_scores_that_tell_nothing_or_everything_stay_finite() -> None:
    scores = torch.eye(3).repeat(5, 1)
    assert fit_temperature(scores, scores.argmin(1)) == pytest.approx(10)
    assert 1e-3 < fit_temperature(scores, scores.argmax(1)) < 1


@pytest.mark.parametrize("shape", [(0, 3), (4,), (4, 3)])
def test_shapes_are_checked(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \(N, C\)"):
        fit_temperature(
            torch.zeros(shape), torch.zeros(0 if shape[0] == 0 else 9, dtype=torch.int64)
        )


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="must be finite"):
        fit_temperature(torch.tensor([[0.5, float("nan")]]), torch.tensor([0]))
