"""A threshold is the best of all that there are."""

from __future__ import annotations

import math

import pytest
import torch

from spela.early_exit import LayerCost
from spela.early_exit.policy import _Answers, _best_threshold, _outcome

INF = math.inf


@pytest.mark.parametrize("seed", range(8))
def test_a_threshold_is_the_best_of_all_at_its_price(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    margin = torch.randint(5, (3, 40), generator=g).double() / 4  # many are equal
    loss = (
        torch.rand(3, 40, generator=g) > margin + 0.3
    ).double()  # the less sure, the more is lost
    loss[-1] = 0
    answers = _Answers(margin, loss)
    costs = [LayerCost(10, 25), LayerCost(20, 30), LayerCost(25, 5)]
    for price in (20.0, 60.0, 200.0):
        for others in ([0.5, 0.5, -INF], [INF, INF, -INF], [0.25, INF, -INF]):
            for layer in (0, 1):

                def value(threshold: float, others=others, layer=layer, price=price) -> float:
                    at = [*others[:layer], threshold, *others[layer + 1 :]]
                    work, lost = _outcome(answers, costs, at)
                    return work + price * lost

                found = _best_threshold(answers, costs, list(others), layer, price)
                least = min(map(value, [*margin[layer].tolist(), INF]))
                assert value(found) == pytest.approx(least)
