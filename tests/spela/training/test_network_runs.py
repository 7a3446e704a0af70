"""Networks by name as runs: from the command line to report, resume, export and early exit."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spela.cli import main
from spela.data import Dataset, load_dataset, resize_images
from spela.data.prepare import prepare
from spela.experiments import build_network, build_optimizer, load_run, make_config, run
from spela.layers import SpelaBlock, SpelaConv2d
from spela.training import RunConfig, RunFolder, Trainer

SMALL = {"width": 8, "epochs": 2, "augment": True}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="module")
def few(digits: Dataset) -> Dataset:
    """Batches enough for bits to differ in, the last one smaller."""
    return dataclasses.replace(
        digits,
        train_x=digits.train_x[:330],
        train_y=digits.train_y[:330],
        test_x=digits.test_x[:100],
        test_y=digits.test_y[:100],
    )


@pytest.mark.parametrize(("name", "blocks"), [("vgg", "2"), ("resnet", "layers"), ("vit", "3")])
def test_a_run_is_repeatable_and_resumes_in_the_same_bits(
    name: str, blocks: str, few: Dataset, tmp_path: Path
) -> None:
    settings = {**SMALL, "resize": 16} if name == "vgg" else SMALL
    config = make_config("digits", model=name, blocks=blocks, **settings)
    few = resize_images(few, 16) if name == "vgg" else few
    summary = run(config, few, tmp_path / "whole")
    again = run(config, few, tmp_path / "again")
    for key in ("test_accuracy", "train_loss", "weight_norm", "parameters"):
        assert again[key] == summary[key]
    states = [load_file(tmp_path / out / "checkpoint.safetensors") for out in ("whole", "again")]
    assert states[0].keys() == states[1].keys()
    assert all((states[0][key] == states[1][key]).all() for key in states[0])
    # With a constant rate, a run given a second epoch is one run of two: its images too.
    constant = {"schedule": "constant"}
    two = make_config("digits", model=name, blocks=blocks, **settings, **constant)
    one = make_config("digits", model=name, blocks=blocks, **{**settings, "epochs": 1}, **constant)
    run(two, few, tmp_path / "two")
    run(one, few, tmp_path / "cut")
    run(two, few, tmp_path / "cut", resume=True, extend=True)
    lines = [(tmp_path / out / "metrics.jsonl").read_text() for out in ("two", "cut")]
    records = [[json.loads(line) for line in text.splitlines()] for text in lines]
    for ours, theirs in zip(*records, strict=True):
        assert ours["train_loss"] == theirs["train_loss"]
        assert ours["test_accuracy"] == theirs["test_accuracy"]


def test_each_epoch_has_crops_of_its_own(digits: Dataset, tmp_path: Path) -> None:
    config = make_config("digits", model="resnet", blocks="2", seed=3, **SMALL)
    net = build_network(config, digits.sample_shape, digits.num_classes)
    trainer = Trainer(config, net, build_optimizer(config, net), digits, RunFolder(tmp_path))
    x = digits.train_x[:50]
    first, again, second = (trainer._augmentation(epoch)(x) for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, x)


def test_a_block_network_learns_and_comes_back_from_its_files(
    digits: Dataset, tmp_path: Path
) -> None:
    config = make_config("digits", model="resnet", width=8, blocks="3", epochs=6)
    summary = run(config, digits, tmp_path / "run")
    assert min(summary["test_accuracy"]) > 0.8
    net = load_run(tmp_path / "run").net
    assert len(net.local_layers) == 3
    assert all(isinstance(layer, SpelaBlock) for layer in net.local_layers)
    assert sum(p.numel() for p in net.parameters()) == summary["parameters"]
    predicted = net.eval().predict(prepare(digits.test_x))
    assert (predicted == digits.test_y).double().mean() == pytest.approx(
        summary["test_accuracy"][-1], abs=1e-6
    )


@pytest.mark.parametrize("recipe", ["mono", "predsim", "classifier", "supervised"])
def test_rivals_learn_on_the_same_blocks(recipe: str, digits: Dataset, tmp_path: Path) -> None:
    settings = {"model": "resnet", "width": 8, "blocks": "3", "epochs": 8}
    config = make_config("digits", recipe, **settings)
    summary = run(config, digits, tmp_path / "run")
    assert min(summary["test_accuracy"]) > 0.9
    ours = build_network(make_config("digits", **settings), digits.sample_shape, digits.num_classes)
    theirs = load_run(tmp_path / "run").net
    shapes = [
        [
            [(name, p.shape) for name, p in block.body.named_parameters()]
            for block in net.local_layers
        ]
        for net in (ours, theirs)
    ]
    assert shapes[0] == shapes[1]
    heads = [
        [block.head.state_dict().keys() for block in net.local_layers] for net in (ours, theirs)
    ]
    assert (heads[0] == heads[1]) == (recipe in ("classifier", "supervised"))


def test_every_command_takes_a_run_of_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")

    def spela(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["spela", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        shown = capsys.readouterr()
        assert stop.value.code in (0, None), shown.err
        return shown.out

    train = ("train", "--data", "digits", "--model", "resnet", "--width", "8", "--blocks", "2")
    train += ("--head-weight-decay", "0.1")
    shown = spela(*train, "--augment", "--similarity", "0.1", "--epochs", "1", "--out", out)
    assert "spela resnet, blocks: 2 on digits" in shown
    assert "blocks" in spela("info", out)
    shown = spela("evaluate", out, "--exit-loss", "0.02")
    assert "layer 2: " in shown
    assert "multiply-adds" in shown
    spela("export", out, "--out", str(tmp_path / "net.onnx"))
    backprop = (
        "train",
        "--data",
        "digits",
        "--model",
        "vit",
        "--width",
        "16",
        "--recipe",
        "backprop",
    )
    spela(*backprop, "--epochs", "1", "--out", str(tmp_path / "rival"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": "no"}, "blocks must be a number such as 3, or layers, or conv, got 'no'"),
        ({"blocks": "0"}, "blocks must be a number"),
        ({"blocks": "conv"}, "blocks conv, of SpelaConv2d layers, is for vgg"),
        ({"model": "vgg", "blocks": "conv", "readout": 64}, "would change nothing in this run"),
        ({"model": "vgg", "blocks": "3", "conv_scale": 9.0}, "would change nothing in this run"),
        ({"layers": (8,)}, "network resnet has its own layers: leave layers out"),
        ({"model": "mlp", "blocks": "2"}, "^blocks: of networks by name, use --model vgg"),
        ({"momentum": 0.5}, "would change nothing in this run"),
        ({"activation": "relu"}, "would change nothing in this run, it is of linear layers"),
        (
            {"recipe": "backprop", "similarity": 0.5},
            "would change nothing in this run, it is of blocks",
        ),
        ({"recipe": "predsim", "scale": 5.0}, "scale 5.0 .* of SPELA's heads, not of predsim's"),
        ({"recipe": "mono", "similarity": 0.5}, "similarity 0.5 .* of predsim and SPELA"),
        ({"recipe": "mono", "head_channels": 8}, "head_channels 8 .* not of mono's"),
        ({"recipe": "classifier", "projection": 64}, "projection 64 .* not of classifier's"),
        ({"model": "mlp", "method": "supervised"}, "method supervised is of blocks"),
        ({"method": "pepita"}, "method pepita is for linear layers"),
        ({"model": "mlp", "readout": 7}, "would change nothing in this run, it is of blocks"),
        ({"model": "mlp", "width": 7}, "use --model vgg or cifarnet or resnet or vit"),
        ({"similarity": 1.0}, r"similarity must be in \[0, 1\)"),
        (
            {"model": "mlp", "head_weight_decay": 0.0},
            "would change nothing in this run, it is of bl",
        ),
        (
            {"recipe": "backprop", "head_weight_decay": 0.1},
            "would change nothing in this run, it is of bl",
        ),
        ({"head_weight_decay": -1.0}, "head_weight_decay must be 0 or more"),
        ({"head_weight_decay": float("nan")}, "head_weight_decay must be 0 or more"),
    ],
)
def test_settings_that_do_not_fit(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config("digits", **{"model": "resnet", **settings})


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("recipe", ["best", "supervised", "predsim"])
def test_heads_have_a_weight_decay_of_their_own(recipe: str, optimizer: str) -> None:
    settings = {"width": 4, "blocks": "2", "similarity": 0.2, "optimizer": optimizer, "lr": 0.01}
    config = make_config(
        "digits", recipe, model="resnet", weight_decay=0.3, head_weight_decay=20.0, **settings
    )
    net = build_network(config, (1, 8, 8), 10)
    twin = build_network(config, (1, 8, 8), 10)
    parts = [dict(part.named_parameters()) for part in (net, twin)]
    assert all(torch.equal(value, parts[1][name]) for name, value in parts[0].items())
    x, target = torch.rand(20, 1, 8, 8), torch.arange(20) % 10
    with torch.no_grad():  # linear heads start at zero, where no decay shows
        for (name, value), other in zip(parts[0].items(), parts[1].values(), strict=True):
            if name.endswith("projection"):
                other.copy_(value.normal_())
    ours = build_optimizer(config, net)
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    theirs = kind(
        [
            {"params": [value for name, value in parts[1].items() if ".body." in f".{name}"]},
            {
                "params": [value for name, value in parts[1].items() if ".body." not in f".{name}"],
                "weight_decay": 20.0,
            },
        ],
        lr=0.01,
        weight_decay=0.3,
    )
    for _ in range(2):
        net.local_step(x, target, ours)
        twin.local_losses(x, target).sum().backward()
        theirs.step()
        theirs.zero_grad()
    for name, value in parts[0].items():
        torch.testing.assert_close(value, parts[1][name], rtol=2e-4, atol=2e-5)


def test_a_run_with_a_weight_decay_of_heads_goes_on_in_the_same_bits(
    few: Dataset, tmp_path: Path
) -> None:
    settings = {"model": "resnet", "blocks": "2", **SMALL, "schedule": "constant"}
    two = make_config("digits", head_weight_decay=2.0, **settings)
    one = make_config("digits", head_weight_decay=2.0, **{**settings, "epochs": 1})
    run(two, few, tmp_path / "two")
    run(one, few, tmp_path / "cut")
    run(two, few, tmp_path / "cut", resume=True, extend=True)
    run(make_config("digits", **settings), few, tmp_path / "same")
    first, second, same = (
        load_file(tmp_path / out / "checkpoint.safetensors") for out in ("two", "cut", "same")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["model.0.projection"], same["model.0.projection"])
    saved = json.loads((tmp_path / "two" / "config.json").read_text())
    assert saved["head_weight_decay"] == 2.0
    assert RunConfig.from_dict(saved) == two
    assert "head_weight_decay" not in json.loads((tmp_path / "same" / "config.json").read_text())
    with pytest.raises(ValueError, match=r"head_weight_decay 2\.0 -> None"):
        run(make_config("digits", **settings), few, tmp_path / "two", resume=True)
    with pytest.raises(ValueError, match="head_weight_decay must be float or None, got 'much'"):
        RunConfig.from_dict({**saved, "head_weight_decay": "much"})


def test_what_cannot_run_leaves_no_folder(digits: Dataset, tmp_path: Path) -> None:
    flat = dataclasses.replace(
        digits, train_x=digits.train_x.flatten(1), test_x=digits.test_x.flatten(1)
    )
    for config, data, message in (
        (make_config("digits", model="vgg"), digits, "at least 16 x 16 pixels"),
        (make_config("digits", model="resnet", blocks="99"), digits, "at most 7 blocks"),
        (make_config("digits", augment=True), flat, "augment crops and mirrors images"),
        *(
            (
                make_config("digits", model="resnet", similarity=0.5, batch_size=size),
                digits,
                "is one sample, which a similarity loss compares with nothing",
            )
            for size in (1, 4)  # of 1,437
        ),
    ):
        with pytest.raises(ValueError, match=message):
            run(config, data, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_vgg_is_trained_in_layers_of_spela_conv2d(digits: Dataset, tmp_path: Path) -> None:
    config = make_config("digits", model="vgg", width=4, blocks="conv", epochs=4)
    images = resize_images(digits, 32)
    net = build_network(config, images.sample_shape, images.num_classes)
    assert [type(layer) for layer in net] == [SpelaConv2d] * 6
    summary = run(config, images, tmp_path / "run")
    assert min(summary["test_accuracy"]) > 0.5


def test_a_last_batch_of_one_sample_is_learnt(digits: Dataset, tmp_path: Path) -> None:
    few = dataclasses.replace(digits, train_x=digits.train_x[:9], train_y=digits.train_y[:9])
    config = make_config("digits", model="resnet", width=4, batch_size=4, epochs=1)
    assert all(loss > 0 for loss in run(config, few, tmp_path / "run")["train_loss"])
