"""A run's page: the class geometry of layers that score by cosines, and of those that score by logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spela.data import load_dataset
from spela.data.prepare import prepare
from spela.experiments import load_run, make_config
from spela.experiments import run as run_training
from spela.reports.run import _curves, _geometry


@pytest.mark.parametrize("recipe", ["best", "mono"])
def test_a_layers_mean_scores_are_shown_on_their_own_scale(recipe: str, tmp_path: Path) -> None:
    data = load_dataset("digits")
    config = make_config("digits", recipe, model="resnet", width=4, blocks="1", epochs=2)
    run_training(config, data, tmp_path / "run")
    run = load_run(tmp_path / "run")
    figure = _geometry(run, data)
    assert figure is not None
    # One block holds fifteen convolutions, whose norms are no blocks'.
    curves = [[line.get_label() for line in axes.get_lines()] for axes in _curves(run.records).axes]
    assert curves == [["layer 1"], ["layer 1"], [f"weight {index}" for index in range(1, 16)]]
    (image,) = figure.axes[0].images
    with torch.no_grad():
        scores = run.net.eval()(prepare(data.test_x))
    means = torch.stack([scores[data.test_y == label].mean(dim=0) for label in range(10)])
    assert torch.allclose(torch.as_tensor(image.get_array()), means, atol=1e-5)
    most = means.abs().max().item()
    title = figure.axes[0].get_title()
    if recipe == "mono":
        assert most != pytest.approx(1, rel=0.1)
        assert image.get_clim() == pytest.approx((-most, most), rel=1e-5)
        assert title == "layer 1: mean logits of a class"
    else:
        assert image.get_clim() == (-1, 1)
        assert title.startswith("layer 1: mean cosine of a class")
