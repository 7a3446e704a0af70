"""A convolution layer's stages in closed form against autograd of its plain forward."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from spela import SpelaConv2d
from spela.layers.conv_stages import Stages, stages_backward, stages_forward
from spela.optim import LocalSGD
from spela_kernels.pooling import compiled


@pytest.mark.parametrize("norm", ["training", "evaluation", "none"])
@pytest.mark.parametrize("pool", ["max", "avg", None])
@pytest.mark.parametrize(
    ("channels", "kernels", "kernel", "pixels", "pool_size"),
    [(1, 1, 1, (2, 4), 2), (1, 3, 2, (3, 5), 2), (2, 1, 3, (5, 9), 3), (3, 4, 1, (1, 2), 1)],
)
def test_the_closed_form_is_the_gradient_of_the_layer(
    norm: str,
    pool: str | None,
    channels: int,
    kernels: int,
    kernel: int,
    pixels: tuple[int, int],
    pool_size: int,
) -> None:
    convolved = [n - kernel + 1 for n in pixels]
    window = pool_size if pool else 1
    g = torch.Generator().manual_seed(0)
    layer = SpelaConv2d(
        channels, kernels, kernel, 3, (convolved[0] // window, convolved[1] // window),
        symmetric_dim=4, batch_norm=norm != "none", pool=pool, pool_size=pool_size,
        negative_slope=0.1, generator=g, dtype=torch.float64,
    )  # fmt: skip
    if layer.norm is not None:
        with torch.no_grad():
            layer.norm.weight.copy_(torch.linspace(-1.0, 1.3, kernels))
            layer.norm.bias.uniform_(-1, 1, generator=g)
            layer.norm.running_mean.uniform_(-1, 1, generator=g)
            layer.norm.running_var.uniform_(0.5, 2, generator=g)
    layer.train(norm != "evaluation")
    x = torch.randn(5, channels, *pixels, generator=g, dtype=torch.float64)
    stages = Stages(layer, layer.norm, 0.1, pool, pool_size)
    twin = copy.deepcopy(layer)
    y = twin(x)
    done = stages_forward(stages, x)
    torch.testing.assert_close(done.y, y, rtol=0, atol=1e-12)
    dy = torch.randn(y.shape, generator=g, dtype=torch.float64)
    y.backward(dy)
    gradients = stages_backward(stages, done, dy)
    for name, parameter in layer.named_parameters():
        if name != "projection":
            expected = twin.get_parameter(name).grad
            torch.testing.assert_close(gradients[parameter], expected, rtol=0, atol=1e-10)
    for name, buffer in layer.named_buffers():
        torch.testing.assert_close(buffer, twin.get_buffer(name))


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_last_in_memory_whatever_the_input(channels: int) -> None:
    layer = SpelaConv2d(channels, 4, 3, 3, (3, 3), symmetric_dim=4)
    stages = Stages(layer, layer.norm, 0.1, "max", 2)
    x = torch.randn(5, channels, 8, 8)
    for given in (x, x.contiguous(memory_format=torch.channels_last), x.mT.contiguous().mT):
        done = stages_forward(stages, given)
        for maps in (done.conv, done.y):
            assert maps.stride(1) == 1
            assert maps.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("training", [True, False])
def test_a_bias_that_batch_norm_takes_out_gets_no_gradient(training: bool) -> None:
    layer = SpelaConv2d(2, 4, 3, 3, (3, 3), symmetric_dim=4).train(training)
    stages = Stages(layer, layer.norm, 0.1, "max", 2)
    done = stages_forward(stages, torch.randn(5, 2, 8, 8))
    found = stages_backward(stages, done, torch.randn(done.y.shape))[layer.bias]
    assert (
        bool((found == 0).all()) == training
    )  # in evaluation the running mean stays, and it counts


@pytest.mark.parametrize("norm", ["training", "evaluation", "none"])
@pytest.mark.parametrize(
    ("kernels", "pixels", "pool", "pool_size"),
    [(5, (9, 12), "max", 2), (128, (11, 13), "max", 3), (37, (14, 8), "max", 4), (3, (8, 9), "avg", 2),
     (3, (4, 5), None, 2)],
)  # fmt: skip
def test_a_float32_step_with_and_without_the_compiled_passes(
    norm: str,
    kernels: int,
    pixels: tuple[int, int],
    pool: str | None,
    pool_size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    window = pool_size if pool else 1
    g = torch.Generator().manual_seed(0)
    layer = SpelaConv2d(
        2, kernels, 3, 4, ((pixels[0] - 2) // window, (pixels[1] - 2) // window), symmetric_dim=8,
        pool=pool, pool_size=pool_size, batch_norm=norm != "none", negative_slope=0.1, generator=g,
    )  # fmt: skip
    if layer.norm is not None:
        with torch.no_grad():
            layer.norm.weight.copy_(torch.linspace(-1.0, 1.3, kernels))
            layer.norm.bias.uniform_(-1, 1, generator=g)
    layer.train(norm != "evaluation")
    x, target = torch.randn(6, 2, *pixels, generator=g), torch.arange(6) % 4

    def step(dtype: torch.dtype) -> dict[str, torch.Tensor]:
        own = copy.deepcopy(layer).to(dtype)
        loss, y = own.local_step(x.to(dtype), target, LocalSGD(own.parameters(), lr=1.0))
        return {"loss": loss, "y": y, **own.state_dict()}

    built = step(torch.float32)
    monkeypatch.setattr(compiled, "_windows", None)
    plain, exact = step(torch.float32), step(torch.float64)
    for name, expected in exact.items():
        error = (built[name] - expected).abs().max()
        allowed = 2 * (plain[name] - expected).abs().max() + 2e-6 * (1 + expected.abs().max())
        assert error <= allowed, name


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (3, 1), (4, 1), (4, 2)])
@pytest.mark.parametrize(("stride", "padding"), [(2, 0), (2, 1), ((3, 2), (0, 2))])
def test_a_step_over_skipped_pixels_is_that_of_float64(
    channels: int, groups: int, stride: Any, padding: Any
) -> None:
    """Of 1 x 1 kernels with a stride: torch's own weight gradient is wrong, and writes out of bounds, where
    few channels are last in memory (2.14, CPUs with AVX2)."""
    torch.manual_seed(0)
    x, target = torch.randn(12, channels, 14, 14), torch.arange(12) % 10
    plain = nn.Conv2d(channels, 8, 1, stride, padding, groups=groups)
    shape = plain(x).shape[2:]
    layer = SpelaConv2d(
        channels, 8, 1, 10, tuple(shape), stride=stride, padding=padding, groups=groups, pool=None,
        symmetric_dim=12, batch_norm=False,
    )  # fmt: skip
    layer.load_state_dict({**layer.state_dict(), **plain.state_dict()})
    # Before LeakyReLU: torch's own convolution, contiguous.
    expected = nn.functional.leaky_relu(plain(x), layer.negative_slope)
    torch.testing.assert_close(layer(x), expected)
    exact = copy.deepcopy(layer).double()
    exact.vectors.copy_(layer.vectors)
    loss, _ = exact.local_loss(x.double(), target)
    loss.backward()
    by_autograd, fused = copy.deepcopy(layer), copy.deepcopy(layer)
    by_autograd.local_loss(x, target)[0].backward()
    fused.local_step(x, target, LocalSGD(fused.parameters(), lr=1.0))
    for name, parameter in layer.named_parameters():
        gradient = exact.get_parameter(name).grad.float()
        least = 1e-5 * float(gradient.abs().max())
        torch.testing.assert_close(
            by_autograd.get_parameter(name).grad, gradient, rtol=1e-4, atol=least + 1e-7, msg=name
        )
        moved = (parameter - fused.get_parameter(name)).detach()
        torch.testing.assert_close(moved, gradient, rtol=1e-3, atol=least + 1e-6, msg=name)
