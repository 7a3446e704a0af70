"""A run's page: what it says in words, its samples, settings and plots."""

from __future__ import annotations

import base64
import html
import io
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from spela.data import Dataset, load_dataset
from spela.data.prepare import prepare
from spela.experiments import LoadedRun, load_data, load_run, make_config
from spela.experiments import run as run_training
from spela.reports.lettering import drawable
from spela.reports.looks import look_at
from spela.reports.run import write_report
from spela.reports.run_figures import confusion_figure, curve_figures, geometry_figure
from spela.reports.samples import sample_cards
from spela.reports.settings import changed_settings, other_settings
from spela.reports.step_memory import memory_line
from spela.reports.words import answer_names, size, what_happened
from spela.training import RunFolder


def _trained(out: Path, data: Dataset, *args: Any, **settings: Any) -> LoadedRun:
    run_training(make_config(data.name, *args, **settings), data, out)
    return load_run(out)


def _page(out: Path, run: LoadedRun, data: Dataset) -> str:
    return html.unescape(write_report(RunFolder(out), run, data).read_text())


def _rows(test: int = 30, classes: tuple[str, ...] = ("a", "b", "c")) -> Dataset:
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    y = torch.arange(60) % len(classes)
    return Dataset("rows", x, y, x[:test], y[:test], len(classes), classes)


@pytest.mark.parametrize("recipe", ["best", "mono"])
def test_a_layers_mean_scores_are_shown_on_their_own_scale(recipe: str, tmp_path: Path) -> None:
    data = load_dataset("digits")
    settings = {"model": "resnet", "width": 4, "blocks": "1", "epochs": 2}
    run = _trained(tmp_path / "run", data, recipe, **settings)
    looks = look_at(run, data, ["block 1"])
    figure = geometry_figure(looks.layers[0], looks.labels, data.class_names)
    # One block holds fifteen convolutions, whose norms are no blocks'.
    figures = curve_figures(run.records, ["block 1"])
    curves = [[line.get_label() for line in f.axes[0].get_lines()] for _, _, f in figures]
    assert curves == [["block 1"], ["block 1"], [f"weight {index}" for index in range(1, 16)]]
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
        assert title == "block 1: mean logits of a class (row)"
    else:
        assert image.get_clim() == (-1, 1)
        assert title.startswith("block 1: mean cosine of a class")


def _records(accuracy: list[list[float]], loss: list[list[float]]) -> list[dict[str, Any]]:
    return [
        {"epoch": epoch, "test_accuracy": a, "train_loss": b, "weight_norm": [1.0] * len(a)}
        for epoch, (a, b) in enumerate(zip(accuracy, loss, strict=True), start=1)
    ]


SENTENCES = {
    "the last is best, and learns": (
        [[0.5, 0.5], [0.6, 0.75]],
        [[1.0, 1.0], [0.9, 0.8]],
        "The last of 2 layers is the best: it gets 75.00 % of the 200 test samples right, 15.00 points more "
        "than the first; in the last epoch the last one's training loss fell by 20 % and its test accuracy "
        "rose by 25.00 points: it was still learning.",
    ),
    "the first is best, and the last overfits": (
        [[0.9, 0.8], [0.9, 0.7]],
        [[1.0, 1.0], [0.9, 0.5]],
        "The first of 2 layers is the best: it gets 90.00 % of the 200 test samples right, the last 70.00 %, "
        "20.00 points less than the first; in the last epoch the last one's training loss fell by 50 % and "
        "its test accuracy fell by 10.00 points: it was still learning the training samples, without gain on "
        "the test's.",
    ),
    "one between is best, the last as good as the first": (
        [[0.6, 0.8, 0.5], [0.6, 0.8, 0.6]],
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.5]],
        "Layer 2 of 3 is the best: it gets 80.00 % of the 200 test samples right, the last 60.00 %, as many "
        "as the first; in the last epoch the last one's training loss rose by 50 % and its test accuracy "
        "rose by 10.00 points: it was not learning any more, with the learning rate down to zero.",
    ),
    "all alike, settled": (
        [[0.6, 0.6], [0.6, 0.6]],
        [[1.0, 1.0], [1.0, 0.995]],
        "Both layers get 60.00 % of the 200 test samples right; in the last epoch the last one's training "
        "loss changed by less than 1 % and its test accuracy stayed: it had settled, with the learning rate "
        "down to zero.",
    ),
    "one layer, one epoch, chance": (
        [[0.3]],
        [[1.0]],
        "The layer gets 30.00 % of the 200 test samples right; naming the most frequent class each time "
        "would get 40.00 %; a single epoch does not show whether more would help.",
    ),
    "a loss that was zero": (
        [[0.5], [0.5]],
        [[0.0], [0.0]],
        "The layer gets 50.00 % of the 200 test samples right; in the last epoch its training loss changed "
        "by less than 1 % and its test accuracy stayed: it had settled, with the learning rate down to zero.",
    ),
    "a loss that is no number": (
        [[0.5], [0.5]],
        [[1.0], [float("nan")]],
        "The weights are no longer finite from epoch 2 on: no figure on this page says anything; train again "
        "with a lower learning rate.",
    ),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_a_sentence_says_what_happened(case: str) -> None:
    accuracy, loss, expected = SENTENCES[case]
    config = make_config("digits", "best")
    assert what_happened(config, _records(accuracy, loss), 200, 0.4) == expected


def test_a_head_is_judged_by_its_own_epochs() -> None:
    config = make_config("digits", "cnn", model="cnn", layers=(8,), epochs=2, head_epochs=1)
    records = _records([[0.5, 0.1], [0.6, 0.1], [0.6, 0.7]], [[1.0, 1.0]] * 3)
    assert "a single epoch does not show" in what_happened(config, records, 100, 0.1)
    longer = replace(config, head_epochs=2)
    records = _records([[0.6, 0.1], [0.6, 0.1], [0.6, 0.7], [0.6, 0.6]], [[1.0, 1.0]] * 4)
    assert "test accuracy fell by 10.00 points: it had settled." in what_happened(
        longer, records, 100, 0.1
    )


def test_what_answers_has_the_name_of_its_kind() -> None:
    blocks = make_config("x", model="vgg", blocks="2")
    assert answer_names(blocks, 2) == ["block 1", "block 2"]
    assert answer_names(replace(blocks, blocks="conv"), 2) == ["layer 1", "layer 2"]
    assert answer_names(make_config("x", "pepita"), 1) == ["output"]
    records = _records([[0.5]], [[1.0]])
    assert what_happened(make_config("x", "backprop"), records, 1, 0.1).startswith(
        "The output gets 50.00 % of the 1 test sample right;"
    )


def _marked(page: str) -> list[tuple[str, list[str], bool]]:
    """(true class, answers, marked as misread) of the pictures on a page."""
    cards = re.findall(r'<div( class="misread")?>\n<img.*?</div>', page, flags=re.S)
    texts = re.findall(r"<div(?: class=\"misread\")?>\n(<img.*?)</div>", page, flags=re.S)
    return [
        (
            re.search(r"<b>(.*?)</b>", text)[1],
            [
                re.sub(r"<[^>]*>|✗ ", "", a)
                for a in re.findall(r"<br>[^:]*: ([^<]+|<span.*?</span>)", text)
            ],
            bool(mark),
        )
        for mark, text in zip(cards, texts, strict=True)
    ]


def test_twelve_images_stand_with_their_layers_answers(tmp_path: Path) -> None:
    data = load_dataset("digits")
    run = _trained(tmp_path / "run", data, layers=(48, 48), epochs=3)
    cards = _marked(_page(tmp_path / "run", run, data))
    assert len(cards) == 12
    assert [misread for _, _, misread in cards] == [True] * 6 + [False] * 6
    with torch.no_grad():
        answers = [s.argmax(dim=1) for s in run.net.layer_scores(prepare(data.test_x))]
    held = sample_cards(look_at(run, data, ["layer 1", "layer 2"]), data, ["layer 1", "layer 2"])
    for (label, named, misread), card in zip(cards, held, strict=True):
        place = card["place"]
        assert label == str(int(data.test_y[place]))
        assert named == [str(int(of_layer[place])) for of_layer in answers]
        assert misread == (named[-1] != label)
        pixels = torch.tensor(_values(_decoded(card["picture"]))).reshape(8, 8)
        assert torch.equal(pixels, (255 * data.test_x[place, 0]).round().long())


def _decoded(picture: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(picture)))


def _values(image: Image.Image) -> list[int]:
    return np.asarray(image).flatten().tolist()


def test_pictures_of_floats_of_many_channels_and_of_large_images() -> None:
    def picture(x: Tensor) -> Image.Image:
        data = Dataset("x", x, torch.arange(2), x, torch.arange(2), 2, ("a", "b"))
        run = LoadedRun(_Constant(), None)  # type: ignore[arg-type]
        return _decoded(
            sample_cards(look_at(run, data, ["layer 1"]), data, ["layer 1"])[0]["picture"]
        )

    ramp = torch.tensor([0.0, 0.5, 1.0, 0.0]).reshape(1, 1, 2, 2).repeat(2, 1, 1, 1)
    assert _values(picture(ramp)) == [0, 128, 255, 0]
    assert _values(picture(4 * ramp - 2)) == [0, 128, 255, 0]  # as far as the values go
    assert picture(torch.rand(2, 3, 200, 100)).size == (48, 96)
    assert picture(torch.rand(2, 3, 200, 100)).mode == "RGB"
    assert picture(torch.rand(2, 5, 8, 8)).mode == "L"


class _Constant(torch.nn.Sequential):
    """Answers class 1 always."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Linear(1, 1))

    def layer_scores(self, x: Tensor) -> list[Tensor]:
        return [torch.tensor([0.25, 0.75]).repeat(len(x), 1)]


def test_rows_of_numbers_and_few_samples_have_a_table(tmp_path: Path) -> None:
    data = _rows(5, ("<i>a</i>", "b", "c"))
    run = _trained(tmp_path / "run", data, layers=(8,), epochs=1)
    raw = write_report(RunFolder(tmp_path / "run"), run, data).read_text()
    assert "<i>" not in raw
    page = " ".join(html.unescape(raw).split())
    assert "<h2>5 test samples</h2>" in page
    assert '<img alt="test image' not in page
    first = f"{', '.join(f'{value:.3g}' for value in data.test_x[0, :4].tolist())}, …"
    assert first in page
    assert ": 1 epoch in " in page
    assert not re.search(r"\d epochs", page)


def test_deep_networks_show_the_first_layers_and_the_last() -> None:
    data = _rows()
    looks = replace(
        look_at(LoadedRun(_Constant(), None), _rows(6, ("a", "b")), ["x"]),  # type: ignore[arg-type]
        answers=torch.zeros(7, 6, dtype=torch.int64),
    )
    cards = sample_cards(looks, data, [f"layer {k}" for k in range(1, 8)])
    shown = [answer["layer"] for answer in cards[0]["answers"]]
    assert shown == ["layer 1", "layer 2", "layer 3", "layer 7"]


def test_samples_of_a_test_set_sorted_by_class_are_of_all_classes() -> None:
    x = torch.arange(3000.0).reshape(-1, 1)
    y = torch.arange(3000) // 1500
    data = Dataset("sorted", x, y, x, y, 2, ("a", "b"))
    looks = look_at(LoadedRun(_Constant(), None), data, ["layer 1"])  # type: ignore[arg-type]
    assert looks.index.tolist() == list(range(0, 3000, 6))
    assert looks.labels.bincount().tolist() == [250, 250]


def test_changed_settings_stand_first_and_unread_ones_nowhere() -> None:
    config = make_config("digits", "best", layers=(8, 8), lr=0.01)
    assert changed_settings(config) == [
        ("layers", (8, 8), (1024, 1024, 1024)),
        ("lr", 0.01, 1e-3),
    ]
    others = dict(other_settings(config))
    assert others["optimizer"] == "adam"
    assert not {"layers", "lr", "momentum", "kernel_size", "seed"} & others.keys()
    cnn = make_config("digits", "cnn", model="cnn")  # which has no head, so none of its epochs
    assert changed_settings(cnn) == []
    unknown = replace(config, recipe="somebody's")
    assert {name: value for name, value, _ in changed_settings(unknown)}["lr"] == 0.01
    assert other_settings(unknown) == []


@pytest.mark.parametrize("model", ["vgg", "resnet"])
def test_the_memory_of_blocks_stands_beside_backprops(model: str, tmp_path: Path) -> None:
    data = load_dataset("digits").subset(train=100, test=10)
    settings: dict[str, Any] = {"model": model, "width": 4, "resize": 16, "epochs": 1}
    for batch in (
        32,
        64,
        200,
    ):  # the measured step is the second, of 64 a smaller one, of 200 the first
        config = make_config("digits", batch_size=batch, blocks="2", **settings)
        rival = make_config("digits", "backprop", batch_size=batch, **settings)
        held = load_data(config).subset(train=100, test=10)
        own = run_training(config, held, tmp_path / f"own{batch}")
        whole = run_training(rival, held, tmp_path / f"whole{batch}")
        line = memory_line(config, own, held)
        assert f"take {size(own['peak_memory_bytes'])} at their peak" in line
        assert f"would take {size(whole['peak_memory_bytes'])} (counted" in line
        assert memory_line(rival, whole, held) == ""
    assert memory_line(replace(config, network="vit"), own, data).endswith("and batch.")
    gpu = own | {"device": "cuda:0"}  # whose figure is the allocator's
    assert memory_line(config, gpu, data).endswith("and batch.")


def test_epochs_are_whole_and_axes_say_where_they_start() -> None:
    for count in (1, 2, 3, 25):
        records = _records([[0.80, 0.95]] * count, [[0.3, 0.2]] * count)
        (_, _, accuracy), (_, _, loss), _ = curve_figures(records, ["layer 1", "layer 2"])
        for figure in (accuracy, loss):
            axes = figure.axes[0]
            low, high = axes.get_xlim()
            ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
            assert ticks
            assert all(tick == round(tick) for tick in ticks)
        assert loss.axes[0].get_ylim()[0] == 0
        start = accuracy.axes[0].get_ylim()[0]
        assert 70 < start < 80
        assert accuracy.axes[0].get_ylabel() == f"test accuracy, % (axis starts at {start:g})"
    lines = accuracy.axes[0].get_lines()
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == 2
    (_, _, alone), *_ = curve_figures(_records([[0.95]], [[0.3]]), ["layer 1"])
    assert alone.axes[0].get_ylim()[0] == 0
    records = _records([[0.2, 0.95]], [[-0.3, 0.2]])
    (_, _, accuracy), (_, _, loss), _ = curve_figures(records, ["layer 1", "layer 2"])
    assert accuracy.axes[0].get_ylim()[0] == 0
    assert accuracy.axes[0].get_ylabel() == "test accuracy, %"
    assert loss.axes[0].get_ylim()[0] < -0.3


def test_weights_that_are_not_finite_have_a_page(tmp_path: Path) -> None:
    """A loss is looked at before its update, so the last update may leave infinite weights."""
    data, wild = _rows(), {"lr": 3e38, "weight_decay": 3e38, "batch_size": 64}
    config = make_config("rows", "tmlr", layers=(8, 8), epochs=1, **wild)
    summary = run_training(config, data, tmp_path / "run")
    assert not math.isfinite(summary["weight_norm"][0])
    page = _page(tmp_path / "run", load_run(tmp_path / "run"), data)
    assert "The weights are no longer finite from epoch 1 on" in page
    assert "Class geometry of" not in page


@pytest.mark.filterwarnings("error:Glyph")
def test_names_of_classes_may_be_of_any_script_and_hold_formulas(tmp_path: Path) -> None:
    data = _rows(classes=("$a", "\u6f22\u5b57", "$b_{1"))
    config = make_config("rows", layers=(8,), epochs=1)
    run_training(config, data, tmp_path / "run")
    page = _page(tmp_path / "run", load_run(tmp_path / "run"), data)
    assert "\u6f22\u5b57" in page  # text shows what the pictures' font lacks
    figure = confusion_figure(torch.eye(3, dtype=torch.int64), drawable(data.class_names))
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [r"\$a", "1", r"\$b_{1"]


def test_names_of_classes_of_any_length_leave_the_matrix_its_place() -> None:
    counts = torch.eye(3, dtype=torch.int64)
    for names in (("a", "b", "c"), ("a" * 60, "b" * 60, "c" * 60)):
        figure = confusion_figure(counts, names)
        width, _ = figure.get_size_inches()
        assert figure.axes[0].get_position().width * width == pytest.approx(2.9)
        labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert all(len(label) <= 20 for label in labels)


def test_training_does_not_wait_for_matplotlib() -> None:
    """Half a second that only the report needs: it is imported when the accuracies are printed."""
    look = "import sys, spela.cli.running; print('matplotlib' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_the_weight_norm_of_a_layer_is_its_own_and_of_blocks_none_is_shown(tmp_path: Path) -> None:
    data = load_dataset("digits")
    layers = _trained(tmp_path / "layers", data, layers=(8, 6), epochs=1)
    page = _page(tmp_path / "layers", layers, data)
    for norm in layers.records[-1]["weight_norm"]:
        assert f"<td>{norm:.2f}</td>" in page
    blocks = _trained(tmp_path / "blocks", data, model="resnet", width=4, blocks="2", epochs=1)
    result = (
        _page(tmp_path / "blocks", blocks, data).partition("<h2>Result")[2].partition("</table>")[0]
    )
    assert "block 2" in result
    assert "weight norm" not in result
    assert result.count("<td>") == 4 + 2 * 2 + 1
