"""t-SNE of the layers' outputs, before training and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from spela.data import Dataset, prepare
from spela.experiments import load_data, load_run, network_for
from spela.layers import LocalLayer
from spela.layers.modes import output_of
from spela.reports.lettering import drawable

__all__ = ["layers_figure", "layers_runs"]

_SAMPLES = 1000
_QUICK_SAMPLES = 200
_COLUMNS = 3


def layers_runs(table: dict[str, Any]) -> list[str]:
    """The runs that can be drawn: finished ones of SPELA's networks, in the order of the table."""
    ours = [row for row in table["rows"] if row.get("method") == "spela"]
    return list(dict.fromkeys(key for row in ours for key in row["finished"]))


def layers_figure(runs: Path, key: str, data_root: Path | None, quick: bool) -> Figure:
    """Test samples in the outputs of the first, middle and last layer, untrained above trained.

    Args:
        runs: The folder of runs.
        key: A finished run of SPELA's.
        data_root: The folder for datasets.
        quick: Fewer samples.

    Returns:
        A figure of two lines.

    Raises:
        ValueError: If the run or its data cannot be read.
    """
    from sklearn.manifold import TSNE  # here because it takes a second to import

    loaded = load_run(runs / key)
    config = loaded.checkpoint.config
    dataset = load_data(config, data_root)
    count = min(_QUICK_SAMPLES if quick else _SAMPLES, len(dataset.test_y))
    dataset = dataset.subset(test=count)  # at equal distances: files are often sorted by class
    x, labels = prepare(dataset.test_x), dataset.test_y
    untrained = network_for(config, dataset).eval()
    before, after = _outputs(untrained, x), _outputs(loaded.net, x)
    chosen = sorted({0, len(after) // 2, len(after) - 1})[:_COLUMNS]
    figure = Figure(figsize=(3.6 * len(chosen), 7.4), layout="constrained")
    grid = figure.subplots(2, len(chosen), squeeze=False)
    dots = None
    for line, (when, outputs) in enumerate((("before", before), ("after", after))):
        for column, layer in enumerate(chosen):
            axes = grid[line, column]
            # Cosines decide, so directions are what is embedded.
            unit = torch.nn.functional.normalize(outputs[layer].flatten(1).double(), dim=1)
            points = TSNE(
                init="pca", perplexity=min(30, count / 4), random_state=config.seed
            ).fit_transform(unit.numpy())
            dots = axes.scatter(points[:, 0], points[:, 1], c=labels, cmap="tab10", s=5)
            axes.set_title(f"layer {layer + 1}, {when} training", fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
    if dots is not None:
        _name_classes(figure, dots, dataset, labels)
    return figure


@torch.no_grad()
def _outputs(net: torch.nn.Module, x: Tensor) -> list[Tensor]:
    outputs = []
    for module in net.children():
        x = output_of(module, x)
        if isinstance(module, LocalLayer):
            outputs.append(x)
    return outputs


def _name_classes(figure: Figure, dots: Any, dataset: Dataset, labels: Tensor) -> None:
    present = sorted(set(labels.tolist()))
    handles, _ = dots.legend_elements(num=None)
    if len(handles) == len(present):
        names = drawable(dataset.class_names)
        figure.legend(
            handles, [names[k] for k in present], loc="outside lower center", ncols=5, fontsize=8
        )
