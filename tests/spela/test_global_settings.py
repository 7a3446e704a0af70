"""Nothing here depends on torch's process-wide settings or changes them: they are the program's."""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import spela_kernels.cpu.gemm
from spela import SpelaClassifier, SpelaConv2d, SpelaLinear, SpelaSequential, convert, optim
from spela.data import load_dataset
from spela.early_exit import calibrate_thresholds
from spela.experiments import NETWORKS, make_config, run
from spela.streaming import StreamingClassifier
from spela_kernels.cpu import gemm_choice
from tests.spela.torch_settings import (
    default_device,
    default_dtype,
    deterministic_algorithms,
    gradients_off,
    warnings_are_errors,
)

FLOAT32: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}


def _settings() -> tuple[Any, ...]:
    return (
        torch.get_default_dtype(),
        torch.empty(0).device,  # torch 2.8's get_default_device fails once a default was taken back
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.get_num_threads(),
        torch.is_autocast_enabled("cpu"),
        torch.initial_seed(),
        tuple(warnings.filters),
    )


SETTINGS = {
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype float16": lambda: default_dtype(torch.float16),
    "another default device": lambda: default_device("meta"),  # what is made there has no values
    "gradients off": gradients_off,
    "inference mode": torch.inference_mode,
    "deterministic algorithms": deterministic_algorithms,
    "warnings are errors": warnings_are_errors,
}


def _seed(value: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(value)


def _batch() -> tuple[Tensor, Tensor]:
    x = torch.rand(20, 1, 8, 8, generator=_seed(1), **FLOAT32)
    return x, torch.arange(20, device="cpu") % 3


def _linear() -> SpelaSequential:
    g = _seed()
    first = SpelaLinear(64, 32, 3, activation="relu", objective="softmax", generator=g, **FLOAT32)
    second = SpelaLinear(32, 16, 3, activation="prelu", generator=g, vectors="gaussian", **FLOAT32)
    return SpelaSequential(nn.Flatten(), first, second)


def _conv() -> SpelaSequential:
    g = _seed()
    conv = SpelaConv2d(1, 5, 3, 3, (3, 3), symmetric_dim=8, generator=g, **FLOAT32)
    return SpelaSequential(conv, nn.Flatten(), SpelaLinear(45, 8, 3, generator=g, **FLOAT32))


def _trained(build: Callable[[], SpelaSequential], make: Callable[..., Any]) -> list[Tensor]:
    net, (x, target) = build(), _batch()
    optimizer = make(net.parameters())
    losses = [net.local_step(x, target, optimizer) for _ in range(3)]
    with torch.inference_mode(False), torch.enable_grad():
        losses.append(net.local_losses(x, target))
        losses[-1].sum().backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    answers = net.eval().predict_detailed(x, 0.1)
    policy = calibrate_thresholds(net, x, target, max_loss=0.1)
    exits = torch.tensor(policy.thresholds, dtype=torch.float64, device="cpu")
    return [*losses, *net.state_dict().values(), *gradients, *answers, *net.layer_scores(x), exits]


def _stream() -> list[Tensor]:
    stream = StreamingClassifier(_linear(), memory=8, replay=4)
    x, target = _batch()
    losses = [stream.observe(row, int(label)) for row, label in zip(x, target, strict=True)]
    return [*losses, *stream.net.state_dict().values(), stream.buffer.x, stream.predict(x).margin]


def _classifier() -> list[Tensor]:
    x, y = _batch()
    rows, labels = x.flatten(1).numpy(), y.numpy()
    model = SpelaClassifier(hidden_layer_sizes=(16,), max_iter=3, random_state=0)
    model.fit(rows, labels)
    found = [torch.from_numpy(model.predict_proba(rows))]
    return [*found, torch.from_numpy(model.partial_fit(rows, labels).predict_proba(rows))]


def _weights() -> nn.Sequential:
    with torch.inference_mode(False), torch.no_grad():
        model = nn.Sequential(
            nn.Conv2d(1, 3, 3, **FLOAT32),
            nn.BatchNorm2d(3, **FLOAT32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(27, 8, **FLOAT32),
            nn.GELU(),
            nn.Linear(8, 3, **FLOAT32),
        )
        for parameter in model.parameters():
            parameter.uniform_(0.1, 1.0, generator=_seed(2))
    return model


def _converted(**how: Any) -> list[Tensor]:
    x, _ = _batch()
    net = convert(_weights(), 3, x, generator=_seed(), **how)
    return [*net.state_dict().values(), *net.eval().layer_scores(x), net.predict(x)]


def _run(folder: Path, model: str, recipe: str = "best") -> list[Tensor]:
    rng = np.random.default_rng(0)
    file = folder / "tiny.npz"
    np.savez(file, x=rng.random((40, 1, 8, 8), np.float32), y=np.arange(40) % 2)
    small: dict[str, Any] = {"layers": (8, 6)}
    if model == "cnn":
        small = {"channels": (3,), "kernel_size": 3}
    elif model in NETWORKS:
        small = {"width": 4, "blocks": "2", "similarity": 0.1, "augment": True}
    config = make_config(str(file), recipe, model=model, epochs=2, noise=0.1, **small)
    summary = run(config, load_dataset(file), folder / "run")
    weights = load_file(folder / "run" / "checkpoint.safetensors")
    numbers = [*summary["test_accuracy"], *summary["train_loss"]]
    return [torch.tensor(numbers, dtype=torch.float64, device="cpu"), *weights.values()]


WORK: dict[str, Callable[[Path], list[Tensor]]] = {
    "fused SGD": lambda _: _trained(_linear, lambda p: optim.LocalSGD(p, 0.1, momentum=0.9)),
    "fused Adam": lambda _: _trained(_linear, lambda p: optim.LocalAdam(p, 0.1)),
    # Fused: the plain one counts its steps on torch's default device, up to torch 2.11 at least.
    "torch's Adam": lambda _: _trained(_linear, lambda p: torch.optim.Adam(p, 0.1, fused=True)),
    "fused Adam, convolution": lambda _: _trained(_conv, lambda p: optim.LocalAdam(p, 0.1)),
    "torch's SGD, convolution": lambda _: _trained(_conv, lambda p: torch.optim.SGD(p, 0.1)),
    "stream": lambda _: _stream(),
    "classifier": lambda _: _classifier(),
    "converted": lambda _: _converted(),
    "converted, blocks": lambda _: _converted(blocks=2, similarity=0.2),
    "run": lambda folder: _run(folder, "mlp"),
    "run, convolution": lambda folder: _run(folder, "cnn"),
    "run, blocks": lambda folder: _run(folder, "resnet"),
    "run, transformer": lambda folder: _run(folder, "vit"),
    "run, backprop": lambda folder: _run(folder, "cnn", "backprop"),
    "run, Forward-Forward": lambda folder: _run(folder, "mlp", "ff"),
    "run, Mono-Forward": lambda folder: _run(folder, "mlp", "mono"),
    "run, PEPITA": lambda folder: _run(folder, "mlp", "pepita"),
}


@functools.cache
def _expected(work: str) -> list[Tensor]:
    """Under torch's own settings."""
    with tempfile.TemporaryDirectory() as folder:
        return WORK[work](Path(folder))


@pytest.fixture
def measured_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Products are measured again, as in a new process; choices are looked up but once."""
    monkeypatch.setenv("SPELA_CACHE_DIR", str(tmp_path / "cache"))
    gemm_choice._kept.cache_clear()
    spela_kernels.cpu.gemm.onednn_works.cache_clear()
    yield
    gemm_choice._kept.cache_clear()
    spela_kernels.cpu.gemm.onednn_works.cache_clear()


@pytest.mark.parametrize("setting", SETTINGS)
def test_measuring_products_reads_no_default(setting: str, measured_anew: None) -> None:
    with SETTINGS[setting]():
        assert spela_kernels.cpu.gemm.onednn_works() == torch.backends.mkldnn.is_available()
        losses = _trained(_linear, lambda p: optim.LocalAdam(p, 0.1))[0]
        momentum = _trained(_linear, lambda p: optim.LocalSGD(p, 0.1, momentum=0.9))[0]
    torch.testing.assert_close(losses, momentum)  # from before the updates


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("work", WORK)
def test_the_same_bits_under_every_setting(work: str, setting: str, tmp_path: Path) -> None:
    expected = _expected(work)
    with SETTINGS[setting]():
        before = _settings()
        found = WORK[work](tmp_path)
        assert _settings() == before
    assert len(found) == len(expected)
    for now, then in zip(found, expected, strict=True):
        assert now.dtype == then.dtype
        assert torch.equal(now, then)


@pytest.mark.parametrize("work", [name for name in WORK if name.startswith("run")] + ["classifier"])
def test_the_callers_generator_is_left_where_it_was(work: str, tmp_path: Path) -> None:
    torch.manual_seed(12345)
    before = torch.get_rng_state()
    WORK[work](tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
