"""The example that fine-tunes a pretrained network in blocks, at a small size."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]


def test_bodies_stay_or_learn_as_asked_and_the_table_is_whole(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    example = runpy.run_path(str(ROOT / "examples" / "finetune_blocks.py"))
    net = example["build"](10, 32, 2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x, y = example["images"](torch.rand(8, 1, 8, 8), 32), torch.arange(8)
    assert x.shape == (8, 3, 32, 32)
    example["learn"](net, x, y, epochs=1, frozen=True)
    moved = {
        name for name, value in net.state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved
    assert not any(".body." in name for name in moved)
    example["learn"](net, x, y, epochs=1, frozen=False)
    moved = {
        name for name, value in net.state_dict().items() if not torch.equal(value, before[name])
    }
    assert any(".body." in name for name in moved)
    assert not any(".body." in name and "running" in name for name in moved)

    example["main"](["--data", "digits", "--images", "16", "--epochs", "1", "--size", "32"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [" ".join(row[:-2]) for row in rows] == [
        "head on a frozen body",
        "3 blocks",
        "end to end",
    ]
    memory = [float(row[-1]) for row in rows]
    assert memory[0] < memory[1] < memory[2]
