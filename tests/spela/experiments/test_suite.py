"""The paper's experiments as they are declared: what their rows share, and what stands beside them."""

from __future__ import annotations

from pathlib import Path

from spela.experiments.declare import LAST, Range, Row
from spela.experiments.plan import Options, plan
from spela.experiments.registry import EXPERIMENTS


def test_on_a_dataset_all_ablations_learn_for_as_many_epochs() -> None:
    epochs: dict[str, set[int]] = {}
    for job in plan(EXPERIMENTS["ablation"], Options(Path("/nonexistent"), (0,))):
        epochs.setdefault(job.config.data, set()).add(job.config.epochs)
    # On MNIST as many as the authors' notebooks.
    assert epochs == {"fashion-mnist": {20}, "mnist": {200}, "kmnist": {20}}


def _row(experiment: str, name: str) -> Row:
    return next(row for row in EXPERIMENTS[experiment].rows if row.name == name)


def test_a_figure_that_is_published_as_a_range_is_declared_as_one() -> None:
    assert _row("mlp", "paper 1024,10").published == {"mnist": {LAST: Range(94.06, 95.58)}}
    assert _row("ablation", "constant lr 0.1").published == {"mnist": {LAST: Range(94.4, 95.0)}}


def test_figures_of_resnet50_stand_beside_other_features_of_cifar10() -> None:
    for recipe, figures in (
        ("transfer", (83.8, 82.5, 69.0)),
        ("transfer-backprop", (81.9, 80.4, 68.7)),
    ):
        for share, figure in zip((0.1, 0.5, 0.99), figures, strict=True):
            published = _row("transfer", f"{recipe}, test share {share:g}").published
            for backbone in ("resnet50", "efficientnet-lite0"):
                assert published[f"cifar10-{backbone}"] == {LAST: figure}
    assert "another backbone and image size" in EXPERIMENTS["transfer"].source


def test_few_shot_curves_are_whole() -> None:
    shares: dict[str, set[float | None]] = {}
    for row in EXPERIMENTS["fewshot"].rows:
        shares.setdefault(row.series, set()).add(row.x)
    assert len({frozenset(x) for x in shares.values()}) == 1


def test_linear_layers_meet_noise_on_mnist_too() -> None:
    rows = [row for row in EXPERIMENTS["noise"].rows if "mnist" in row.data]
    assert {row.panel for row in rows} == {"pixel noise", "label noise"}
    assert {row.model for row in rows} == {"mlp"}
    assert "mnist" in EXPERIMENTS["noise"].data


def test_every_section_with_cifar10_says_that_its_images_are_a_copy() -> None:
    for experiment in EXPERIMENTS.values():
        has_images = bool({"cifar10", "features"} & set(experiment.data))
        assert ("JPEG copy" in experiment.source) is has_images, experiment.name
