"""The modelled table: eager PyTorch's launches by watching it run, ours from the tile rules."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from spela.benchmarks.modelled import PAPER_LAYERS, eager_launches, format_table, model_steps
from spela.cli import main
from spela_kernels.cost.published_step import published_step
from spela_kernels.cost.roofline import GPUS
from spela_kernels.linear.configs import Problem
from spela_kernels.linear.cost import Step


def test_the_published_step_is_the_reference_step() -> None:
    from spela_kernels import linear_adam_, linear_sgd_, use_backend
    from spela_kernels.linear import Parameters

    g = torch.Generator().manual_seed(0)
    x, weight, vectors = (torch.randn(s, generator=g) for s in ((9, 12), (8, 12), (3, 8)))
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    bias, target = torch.randn(8, generator=g), torch.arange(9) % 3
    for optimizer, objective in (("sgd", "log"), ("adam", "log"), ("sgd", "softmax")):
        w, b, w2, b2 = weight.clone(), bias.clone(), weight.clone(), bias.clone()
        loss = published_step(x, w, b, vectors, target, optimizer=optimizer, objective=objective)()
        with use_backend("reference"):
            if optimizer == "sgd":
                expected, _ = linear_sgd_(x, w2, b2, vectors, target, 0.1, objective=objective)
            else:
                zeros = [Parameters(torch.zeros(8, 12), torch.zeros(8), None) for _ in range(2)]
                expected, _ = linear_adam_(
                    x, w2, b2, vectors, target, 0.1,
                    exp_avgs=zeros[0], exp_avg_sqs=zeros[1], step=1,
                )  # fmt: skip
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close((w.detach(), b.detach()), (w2, b2))


def test_eager_launches_are_the_ones_that_touch_memory() -> None:
    launches = eager_launches(Step(Problem(50, 784, 1024, 10, 4, 4)), torch.float32)
    names = [launch.name for launch in launches]
    assert names.count("addmm") == names.count("mm") == names.count("_foreach_add_") == 1
    assert not set(names) & {"t", "view", "expand", "detach", "empty_like", "unsqueeze"}
    by = {launch.name: launch for launch in launches}
    x, w, y, b = 50 * 784 * 4, 784 * 1024 * 4, 50 * 1024 * 4, 1024 * 4
    assert by["addmm"].device_bytes == x + w + b + y
    assert by["addmm"].flops == by["mm"].flops == 2 * 50 * 784 * 1024
    assert by["mm"].device_bytes == y + x + w  # dW = dz^T x
    assert by["_foreach_add_"].device_bytes == 3 * (w + b)  # read both, write parameters
    adam = eager_launches(Step(Problem(50, 784, 1024, 10, 4, 4), moments=2), torch.float32)
    assert sum(a.device_bytes for a in adam) > sum(a.device_bytes for a in launches) + 4 * w
    half = eager_launches(Step(Problem(50, 784, 1024, 10, 2, 2)), torch.float16)
    # Labels keep their 8 bytes, everything else halves.
    assert sum(a.device_bytes for a in half) < 0.51 * sum(a.device_bytes for a in launches)


def test_rows_and_table() -> None:
    gpus = [GPUS["A100"], GPUS["H100"]]
    rows = model_steps(gpus)
    assert len(rows) == len(PAPER_LAYERS) * 2
    for row in rows:
        assert row.launches == 3 < row.eager_launches
        assert row.compulsory_bytes < row.device_bytes < row.eager_device_bytes
        assert row.predicted_us > 3 * 4.0  # three launches' overhead
        assert row.eager_predicted_us > row.eager_launches * 4.0
    free = model_steps(gpus, overhead_us=0.0)
    assert all(a.ratio < b.ratio for a, b in zip(free, rows, strict=True))
    lines = format_table(rows).splitlines()
    assert len(lines) == 1 + len(PAPER_LAYERS)
    assert lines[0].split()[:2] == ["layer", "launches"]


def _bench(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["spela", "bench", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
    return int(stop.value.code or 0)


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "model.json"
    assert _bench("--model", "--gpu", "a100", "--dtype", "float16", "--json", str(file)) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("A model, not a measurement")
    assert "A100 us" in shown
    assert "H100" not in shown
    data = json.loads(file.read_text())
    assert data["kind"] == "model, not a measurement"
    assert data["rows"][0]["layer"] == "784-1024"
    for arguments, message in {
        ("speed",): "use network_step",
        ("--json", "none/bench.json"): "the folder none does not exist",
        ("--model", "--gpu", "V100"): "use one of T4",
        ("--model", "--dtype", "int8"): "use one of float32",
    }.items():
        assert _bench(*arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
