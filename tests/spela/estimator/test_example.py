"""The gallery's example runs, draws its pictures and says the truth."""

from __future__ import annotations

import runpy
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).resolve().parents[3]


def test_the_gallery_example(capsys: pytest.CaptureFixture[str]) -> None:
    before = matplotlib.get_backend()
    matplotlib.use("Agg")
    try:
        import matplotlib.pyplot as plt

        drawn = runpy.run_path(str(ROOT / "examples" / "plot_classifier.py"))
        shown = [plt.figure(number) for number in plt.get_fignums()]
    finally:
        plt.close("all")
        matplotlib.use(before)
    assert len(shown) == 2
    model = drawn["online"]
    assert model.n_iter_ == len(model.loss_curve_) == len(model.validation_scores_) == 40
    left = shown[1].axes[0].lines[0]
    assert left.get_ydata().tolist() == model.loss_curve_
    ours = drawn["models"]["SpelaClassifier"]
    accuracy = 100 * ours.score(drawn["x_test"], drawn["y_test"])
    assert accuracy > 88
    assert f"SpelaClassifier: {accuracy:.1f} %" in capsys.readouterr().out
