"""Every benchmark where the user asks for it: steps, epochs, memory and blocks on another device."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spela.benchmarks import GROUPS, Row, groups_of, run_groups, scaling
from spela.benchmarks.blocks import block_points
from spela.benchmarks.clock import interleaved_medians
from spela.benchmarks.cnn import CNN_VARIANTS, CnnCase
from spela.benchmarks.convolution import CONV_VARIANTS, ConvCase, check_conv_parity
from spela.benchmarks.epoch import EPOCH_VARIANTS, epoch_data
from spela.benchmarks.memory import MEMORY_VARIANTS, memory_points
from spela.benchmarks.network import VARIANTS, NetworkCase, check_parity, floor_step
from spela.cli import main
from tests.devices import DEVICES

# Fused optimizers and autocast refuse the meta device; the compiler takes half a minute.
NOT_ON_META = (
    "backprop_fused",
    "autograd_spela_adam",
    "autograd_batched",
    "autograd_broadcast",
    "spela_adam",
    "spela_bf16",
    "backprop_compiled",
)
SMALL = NetworkCase((24, 40, 10), 8)
CONV = ConvCase("small", 1, 12, 4)
CNN = CnnCase(channels=(4, 4), kernel_size=3, pixels=14, batch=4)


@pytest.mark.parametrize("device", DEVICES)
def test_steps(device: str) -> None:
    check_parity(replace(SMALL, device=device))
    check_conv_parity(replace(CONV, device=device))
    for makers, case in (
        (VARIANTS, SMALL),
        (CONV_VARIANTS, CONV),
        (CNN_VARIANTS, CNN),
        (MEMORY_VARIANTS, SMALL),
    ):
        for name, make in makers.items():
            if name != "backprop_compiled":
                make(replace(case, device=device))()
    floor_step(replace(SMALL, device=device))()


class _OneDevice(TorchDispatchMode):
    """Refuses an operator whose tensors are on several devices; numbers may be on the CPU."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.dim()]
        assert len({tensor.device for tensor in given}) <= 1, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("makers", [VARIANTS, CONV_VARIANTS, MEMORY_VARIANTS])
def test_no_step_mixes_devices(makers: dict) -> None:
    """On the meta device, which every machine has."""
    case = replace(CONV if makers is CONV_VARIANTS else SMALL, device="meta")
    for name, make in makers.items():
        if name not in NOT_ON_META:
            step = make(case)
            with _OneDevice():
                result = step()
            assert result is None or result.is_meta, name


@pytest.mark.parametrize("device", DEVICES)
def test_epochs(device: str) -> None:
    _, x, y = epoch_data(100, device)
    assert x.device.type == y.device.type == device
    for make in EPOCH_VARIANTS.values():
        make(x, y)()


@pytest.mark.parametrize("device", DEVICES)
def test_memory_against_depth(device: str) -> None:
    points = memory_points([(2, 64), (16, 64)], batch=256, device=device)
    peak = {(p["method"], p["depth"]): p["peak_bytes"] for p in points}
    assert peak["spela", 16] < 1.1 * peak["spela", 2]
    assert peak["backprop", 16] > 3 * peak["backprop", 2]
    assert peak["spela", 16] < peak["both", 16] < peak["backprop", 16]
    # A GPU's convolutions have memory of their own besides, of which a large batch makes little.
    sizes = [("resnet", 16, 16 if device == "cpu" else 128)]
    points = block_points(sizes, counts=[1, 3], pixels=16, least=1, device=device)
    peak = {p["method"]: p["peak_bytes"] for p in points}
    assert peak["3 blocks"] < peak["1 block"]


@pytest.mark.parametrize("device", DEVICES)
def test_scaling(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scaling.AXES, "width", ((8, 16), lambda n: NetworkCase((n, n), 4)))
    points = scaling.measure_axis("width", 0.0, device)
    assert [size for size, _, _ in points] == [8, 16]
    assert all(ours > 0 < floor for _, ours, floor in points)


def test_a_turn_on_a_gpu_is_several_calls_and_waits_for_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: done.append(f"wait {device}"))
    times = interleaved_medians({"a": lambda: done.append("a")}, 0.0, 1, "cuda:1")
    assert done == [
        "a",
        *["wait cuda:1", "a", "wait cuda:1"],
        "wait cuda:1",
        *50 * ["a"],
        "wait cuda:1",
    ]
    assert 0 < times["a"] < 1e-3


def test_vectors_are_of_the_cpu() -> None:
    assert groups_of("cpu") == list(GROUPS)
    assert set(GROUPS) - set(groups_of("cuda:1")) == {"small", "busy", "vectors"}
    with pytest.raises(ValueError, match="use --device cpu"):
        next(iter(run_groups(["vectors"], True, "cuda")))


def test_the_command_measures_where_it_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def group(quick: bool, device: str) -> list[Row]:
        asked.append(device)
        return [Row("epoch", "tiny", "spela", 1.0, "ms", 1.0)]

    for name in GROUPS:
        monkeypatch.setitem(GROUPS, name, group)

    def code(arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["spela", "bench", *arguments.split()])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0)

    file = tmp_path / "b.json"
    assert code(f"--device cpu --json {file}") == 0
    assert asked == ["cpu"] * len(GROUPS)
    assert json.loads(file.read_text())["machine"]["device"] == "cpu"
    assert code("--model --device cpu") == 2
    assert "--device is not for a model" in capsys.readouterr().err
    assert code("--device cuda:99") == 2
    assert "cannot be used here" in capsys.readouterr().err
