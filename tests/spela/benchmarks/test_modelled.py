"""The modelled table: eager PyTorch's launches by watching it run, ours from the tile rules."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from spela.benchmarks.eager_launches import _Watch, eager_launches, eager_projection_launches
from spela.benchmarks.modelled import (
    PAPER_LAYERS,
    PAPER_PROJECTIONS,
    format_table,
    model_steps,
)
from spela.benchmarks.network import NETWORK_CASES
from spela.cli import main
from spela_kernels.cost.published_step import published_projection_step, published_step
from spela_kernels.cost.roofline import GPUS
from spela_kernels.linear.configs import Problem
from spela_kernels.linear.cost import Step
from spela_kernels.projection.configs import Problem as ProjectionProblem
from spela_kernels.projection.cost import Step as ProjectionStep
from spela_kernels.projection.parity import Case as ProjectionCase


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
        torch.testing.assert_close((w, b), (w2, b2))
        assert not any(parameter.requires_grad for parameter in (w, b))


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


def test_the_published_projection_step_is_the_reference_step() -> None:
    from spela_kernels import projection_sgd_, use_backend

    z, projection, vectors, groups, target = ProjectionCase((6, 3, 9, 5, 4, 7), "mse").tensors(
        torch.float32
    )
    stepped = projection.clone()
    step = published_projection_step(z.clone(), stepped, vectors, groups, target)
    with use_backend("reference"):
        for _ in range(2):  # the second finds no gradient of the first
            expected, _ = projection_sgd_(z, projection, vectors, groups, target, 0.1)
            torch.testing.assert_close(step(), expected)
    torch.testing.assert_close(stepped, projection)
    assert not stepped.requires_grad


def test_a_projections_eager_launches_have_three_products() -> None:
    step = ProjectionStep(ProjectionProblem(64, 128, 900, 100, 9, 10, 4))
    launches = eager_projection_launches(step, torch.float32)
    products = [launch for launch in launches if launch.name == "bmm"]
    z, p, projection = 64 * 128 * 900, 64 * 128 * 100, 128 * 900 * 100
    assert [launch.device_bytes for launch in products] == [4 * (z + p + projection)] * 3
    assert [launch.flops for launch in products] == [2 * 64 * 128 * 900 * 100] * 3
    assert sum(launch.device_bytes for launch in launches) > step.compulsory_bytes


def test_rows_and_table() -> None:
    gpus = [GPUS["A100"], GPUS["H100"]]
    rows = model_steps(gpus)
    steps = len(PAPER_LAYERS) + len(PAPER_PROJECTIONS) + len(NETWORK_CASES)
    assert len(rows) == steps * 2
    for row in rows:
        layers = row.name.count("-") if row.kind == "network" else 1
        assert row.launches == (2 if row.kind == "projection" else 3 * layers) < row.eager_launches
        assert row.compulsory_bytes < row.device_bytes < row.eager_device_bytes
        assert row.predicted_us > row.launches * 4.0  # the launches' overhead
        assert row.eager_predicted_us > row.eager_launches * 4.0
        # A graph has 4 us once, and 1 for each launch.
        assert row.predicted_us - row.graph_us == pytest.approx(3 * row.launches - 4)
        eager = row.eager_predicted_us - row.eager_graph_us
        assert eager == pytest.approx(3 * row.eager_launches - 4)
    free = model_steps(gpus, overhead_us=0.0)
    assert all(a.ratio < b.ratio for a, b in zip(free, rows, strict=True))
    assert all(row.predicted_us == row.graph_us for row in free)
    lines = format_table(rows).splitlines()
    assert len(lines) == 1 + 2 * steps
    assert lines[0].split()[:2] == ["step", "launches"]


def test_a_networks_row_is_the_sum_of_its_layers() -> None:
    rows = {row.name: row for row in model_steps([GPUS["H100"]])}
    whole = rows["784-1024-10/b50"]
    parts = (rows["784-1024/b50"], rows["1024-10/b50"])
    for name in ("launches", "device_bytes", "compulsory_bytes", "eager_launches"):
        assert getattr(whole, name) == sum(getattr(part, name) for part in parts)
    assert whole.predicted_us == pytest.approx(sum(part.predicted_us for part in parts))
    # One graph instead of two saves a launch.
    assert whole.graph_us == pytest.approx(sum(part.graph_us for part in parts) - 4)


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
    assert data["rows"][0]["name"] == "784-1024/b50"
    assert {row["kind"] for row in data["rows"]} == {"layer", "projection", "network"}
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


def test_a_folder_that_cannot_be_written_to_is_said_before_measuring(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    assert _bench("--model", "--json", str(tmp_path / "b.json")) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "cannot be written to" in shown.err


def test_an_allocation_is_no_launch() -> None:
    def step() -> None:
        torch.empty(3, device="meta").new_empty_strided((3,), (1,)).fill_(1.0)

    with _Watch() as watched:
        step()
    assert [launch.name for launch in watched.launches] == ["fill_"]
