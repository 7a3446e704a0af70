"""The early-exit experiment answers as the network's own `predict`."""

from __future__ import annotations

import torch

from spela.early_exit.policy import margin_and_label
from spela.experiments import exits
from spela.layers import SpelaLinear
from spela.network import SpelaSequential


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
