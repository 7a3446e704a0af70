"""SpelaConv2d as PyTorch users know nn.Conv2d, its local learning, and what it refuses."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from spela import SpelaConv2d, SpelaLinear, class_grouping, optim
from tests.spela.fused_steps import check_layer_steps

CLASSES = 5


def _batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(6, 2, 9, 8, generator=g).to(dtype), torch.tensor([0, 1, 2, 3, 4, 1])


def _layer(seed: int = 1, **options: Any) -> SpelaConv2d:
    options = {"output_size": (3, 3), "symmetric_dim": 7, **options}
    generator = torch.Generator().manual_seed(seed)
    return SpelaConv2d(2, 4, 3, CLASSES, generator=generator, **options)


# Options of the layer and the map they make of 9 x 8 images
SHAPES: dict[str, dict[str, Any]] = {
    "max": {"output_size": (3, 3)},
    "avg": {"pool": "avg", "output_size": (3, 3)},
    "no_pool": {"pool": None, "output_size": (7, 6)},
    "strided": {"stride": (2, 1), "padding": (0, 2), "output_size": (2, 5)},
    "dilated": {"dilation": 2, "padding": 1, "pool_size": 3, "output_size": (2, 2)},
    "same": {"padding": "same", "output_size": (4, 4)},
    "grouped": {"groups": 2, "bias": False, "output_size": 3},
}


def _plain_cosines(layer: SpelaConv2d, y: Tensor) -> Tensor:
    """(B, K, C) by broadcasting, as the paper writes it."""
    p = (y.flatten(2)[:, :, None, :] @ layer.projection[None]).squeeze(2)
    class_vectors = layer.vectors[torch.arange(4)[:, None], layer.grouping]
    return nn.functional.cosine_similarity(p[:, :, None], class_vectors[None], dim=3)


def _plain(layer: SpelaConv2d, x: Tensor, target: Tensor, objective: str) -> tuple[Tensor, Tensor]:
    """Loss and output through torch's own functions alone."""
    y = nn.functional.conv2d(
        x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
    )
    if layer.norm is not None:
        y = nn.functional.batch_norm(
            y, None, None, layer.norm.weight, layer.norm.bias, training=True
        )
    y = nn.functional.leaky_relu(y, 1e-4)
    if layer.pool is not None:
        pool = nn.functional.max_pool2d if layer.pool == "max" else nn.functional.avg_pool2d
        y = pool(y, layer.pool_size)
    cosines = _plain_cosines(layer, y)
    c = cosines[torch.arange(len(target)), :, target]
    loss = {
        "mse": lambda: ((1 - c) ** 2).mean(),
        "log": lambda: torch.log(2 - c).mean(),
        "softmax": lambda: nn.functional.cross_entropy(20 * cosines.mean(1), target),
    }[objective]()
    return loss, y


@pytest.mark.parametrize("objective", ["mse", "log", "softmax"])
@pytest.mark.parametrize("batch_norm", [True, False], ids=["norm", "no_norm"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_equal_autograd_of_the_plain_formula(
    shape: str, batch_norm: bool, objective: str
) -> None:
    layer = _layer(batch_norm=batch_norm, objective=objective, dtype=torch.float64, **SHAPES[shape])
    x, target = _batch(torch.float64)
    expected, y = _plain(layer, x, target, objective)
    names = [name for name, _ in layer.named_parameters()]
    gradients = torch.autograd.grad(expected, list(layer.parameters()))

    loss, output = layer.local_loss(x.requires_grad_(), target)
    loss.backward()
    assert x.grad is None
    assert not output.requires_grad
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(output, y, rtol=1e-12, atol=1e-12)
    assert "projection" in names
    for name, theirs in zip(names, gradients, strict=True):
        ours = layer.get_parameter(name).grad
        torch.testing.assert_close(
            ours, theirs, rtol=1e-10, atol=1e-10 * float(theirs.abs().max()) + 1e-15,
            msg=lambda m, n=name: f"{n}: {m}",
        )  # fmt: skip


def test_is_an_nn_conv2d_with_torch_layout() -> None:
    layer = _layer()
    assert isinstance(layer, nn.Conv2d)
    assert layer.weight.shape == (4, 2, 3, 3)
    assert layer.projection.shape == (4, 9, 7)
    assert layer.vectors.shape == (4, 4, 7)  # g_k is drawn from 2..4
    assert set(layer.state_dict()) == {
        "weight", "bias", "projection", "vectors", "group_codes", "norm.weight", "norm.bias",
        "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
    }  # fmt: skip
    assert "output_size=(3, 3)" in repr(layer)
    plain = nn.Conv2d(2, 4, 3)
    layer.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(layer.weight, plain.weight)


def test_initial_values() -> None:
    layer = SpelaConv2d(8, 64, 5, 10, (6, 6), generator=torch.Generator().manual_seed(0))
    bound = (8 * 25) ** -0.5  # nn.Conv2d: kaiming uniform with a = sqrt(5)
    for parameter in (layer.weight, layer.bias):
        assert parameter.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert layer.projection.std().item() == pytest.approx(1, rel=0.02)
    assert torch.equal(layer.norm.weight, torch.ones(64))
    counts = layer.grouping.amax(dim=1) + 1
    assert counts.min() >= 2
    assert counts.max() <= 9
    cosines = layer.vectors @ layer.vectors.mT
    for kernel, count in enumerate(counts.tolist()):
        off = cosines[kernel, :count, :count][~torch.eye(count, dtype=torch.bool)]
        torch.testing.assert_close(off, torch.full_like(off, -1 / (count - 1)))


def test_a_generator_decides_everything() -> None:
    first, second, other = _layer(), _layer(), _layer(seed=2)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    for name in ("weight", "bias", "projection", "vectors", "group_codes"):
        assert not torch.equal(first.state_dict()[name], other.state_dict()[name]), name
    other.load_state_dict(first.state_dict())
    x, _ = _batch()
    assert torch.equal(other.scores(other(x)), first.scores(first(x)))


def test_layers_can_share_a_grouping() -> None:
    first = _layer()
    second = _layer(seed=2, grouping=first.grouping)
    assert torch.equal(first.grouping, second.grouping)
    assert second.vectors.shape[1] == int(first.grouping.max()) + 1
    assert _layer(grouping=3).grouping.amax(dim=1).tolist() == [2] * 4
    assert _layer(grouping=(2, 4)).vectors.shape == (4, 3, 7)


def test_scores_are_mean_cosines() -> None:
    layer, (x, _) = _layer().double(), _batch(torch.float64)
    y = layer(x)
    torch.testing.assert_close(layer.scores(y), _plain_cosines(layer, y).mean(1))
    assert torch.equal(layer.scores(torch.zeros_like(y[:1])), torch.zeros(1, CLASSES).double())
    with pytest.raises(ValueError, match=r"`y` must be \(B, 4, 3, 3\)"):
        layer.scores(y.flatten(1))


def test_eval_uses_running_statistics() -> None:
    layer, (x, target) = _layer().double(), _batch(torch.float64)
    for _ in range(400):
        layer(x)
    batch_statistics = layer(x)
    layer.eval()
    kept = copy.deepcopy(layer.norm.state_dict())
    # 336 values a channel: the running variance is the unbiased one
    torch.testing.assert_close(layer(x), batch_statistics, rtol=5e-3, atol=5e-3)
    shifted = layer(x[:1] + 1)
    assert (shifted - layer.train()(x[:1] + 1)).abs().max() > 0.1
    layer.norm.load_state_dict(kept)
    layer.eval().local_step(x, target, optim.LocalSGD(layer.parameters(), lr=0.0))
    assert torch.equal(layer.norm.running_mean, kept["running_mean"])


def _optimizers(kind: str) -> tuple[type, type, dict[str, Any]]:
    return {
        "sgd": (optim.LocalSGD, torch.optim.SGD, {"lr": 0.5, "weight_decay": 0.01}),
        "momentum": (optim.LocalSGD, torch.optim.SGD, {"lr": 0.2, "momentum": 0.9}),
        "nesterov": (
            optim.LocalSGD, torch.optim.SGD, {"lr": 0.2, "momentum": 0.9, "nesterov": True},
        ),
        "adam": (optim.LocalAdam, torch.optim.Adam, {"lr": 0.05, "weight_decay": 0.01}),
    }[kind]  # fmt: skip


@pytest.mark.parametrize("objective", ["mse", "softmax"])
@pytest.mark.parametrize("kind", ["sgd", "momentum", "nesterov", "adam"])
def test_local_step_equals_local_loss_and_torch_optimizer(kind: str, objective: str) -> None:
    x, target = _batch(torch.float64)
    # Adam divides a gradient that is zero but for rounding by its own size: a conv bias's before batch
    # norm, and gamma's while beta is zero. Leave the one out, move the other; some gammas negative.
    fused = _layer(objective=objective, bias=kind != "adam").double()
    with torch.no_grad():
        fused.norm.weight.copy_(torch.linspace(-1.5, 1.5, len(fused.norm.weight)))
        fused.norm.bias.copy_(torch.linspace(-0.2, 0.3, len(fused.norm.bias)))
    plain = copy.deepcopy(fused)
    ours_type, theirs_type, options = _optimizers(kind)
    ours = ours_type(fused.parameters(), **options)
    theirs = theirs_type(plain.parameters(), **options)
    check_layer_steps((fused, plain), (ours, theirs), x, target, rtol=1e-9)
    # The state is torch's own: an unfused step may follow a fused one.
    for layer, optimizer in ((fused, ours), (plain, theirs)):
        optimizer.zero_grad()
        layer.local_loss(x, target)[0].backward()
        optimizer.step()
    torch.testing.assert_close(fused.projection, plain.projection, rtol=1e-8, atol=1e-11)


class _Calls(TorchDispatchMode):
    """Counts the convolutions and remembers which gradients were asked of them."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards = 0
        self.masks: list[list[bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.forwards += func is torch.ops.aten.convolution.default
        if func is torch.ops.aten.convolution_backward.default:
            self.masks.append(args[-1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("fused", [True, False])
def test_one_forward_a_step_and_no_gradient_of_the_input(fused: bool) -> None:
    layer, (x, target) = _layer(), _batch()
    x.requires_grad_()
    make = optim.LocalAdam if fused else torch.optim.Adam
    optimizer = make(layer.parameters(), lr=0.01)
    with _Calls() as calls:
        layer.local_step(x, target, optimizer)
    assert calls.forwards == 1
    # Weight always; the bias, which batch norm takes out again, only by autograd.
    assert calls.masks == [[False, True, not fused]]
    assert int(layer.norm.num_batches_tracked) == 1


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_that_nobody_counts_move_as_in_torch(momentum: float | None) -> None:
    layer, (x, target) = _layer(), _batch()
    layer.norm.momentum, layer.norm.num_batches_tracked = momentum, None
    plain = copy.deepcopy(layer)
    plain(x)
    layer.local_step(x, target, optim.LocalSGD(layer.parameters(), lr=0.0))
    torch.testing.assert_close(layer.norm.running_mean, plain.norm.running_mean)
    torch.testing.assert_close(layer.norm.running_var, plain.norm.running_var)


def test_any_torch_optimizer_steps_this_layer_alone() -> None:
    layer, other, (x, target) = _layer(), _layer(), _batch()
    optimizer = torch.optim.RMSprop([*layer.parameters(), *other.parameters()], lr=0.01)
    before = copy.deepcopy(other.state_dict())
    loss, y = layer.local_step(x, target, optimizer)
    for name in ("weight", "norm.bias", "projection"):
        assert not torch.equal(layer.get_parameter(name), before[name]), name
        assert torch.equal(other.get_parameter(name), before[name]), name
    assert not y.requires_grad
    assert not loss.requires_grad


def test_each_parameter_may_have_its_own_group() -> None:
    layer, (x, target) = _layer(), _batch()
    before = copy.deepcopy(layer.state_dict())
    rest = [p for p in layer.parameters() if p is not layer.projection]
    groups = [{"params": [layer.projection], "lr": 0.0}, {"params": rest}]
    layer.local_step(x, target, optim.LocalSGD(groups, lr=1.0))
    assert torch.equal(layer.projection, before["projection"])
    assert not torch.equal(layer.weight, before["weight"])


def test_frozen_parameters_stay() -> None:
    x, target = _batch()
    layer = _layer().requires_grad_(False)
    before = copy.deepcopy(layer.state_dict())
    _loss, y = layer.local_step(x, target, optim.LocalSGD([nn.Parameter(torch.zeros(1))], lr=1.0))
    for name, _ in layer.named_parameters():
        assert torch.equal(layer.get_parameter(name), before[name]), name
    torch.testing.assert_close(y, layer(x))
    half = _layer()
    half.projection.requires_grad_(False)
    half.local_step(x, target, optim.LocalSGD(half.parameters(), lr=1.0))
    assert torch.equal(half.projection, before["projection"])
    assert not torch.equal(half.weight, before["weight"])


def test_dtype_device_and_deepcopy() -> None:
    layer = _layer().double()
    assert layer.projection.dtype == layer.vectors.dtype == torch.float64
    assert layer.grouping.dtype == torch.int64
    x, target = _batch(torch.float64)
    clone = copy.deepcopy(layer)
    layer.local_step(x, target, optim.LocalSGD(layer.parameters(), lr=1.0))
    assert not torch.equal(layer.weight, clone.weight)
    meta = copy.deepcopy(layer).to("meta")
    assert meta(torch.empty(2, 2, 9, 8, device="meta", dtype=torch.float64)).shape == (2, 4, 3, 3)
    built = _layer(device="meta")
    assert built.projection.is_meta
    assert built.grouping.is_meta


def test_autocast_of_the_local_losses() -> None:
    layer, (x, target) = _layer(), _batch()
    exact, _ = layer.local_loss(x, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = layer.local_loss(x, target)
    loss.backward()
    assert layer.weight.grad.dtype == torch.float32
    assert abs(loss - exact) < 4 * torch.finfo(torch.bfloat16).eps
    fused = optim.LocalSGD(layer.parameters(), lr=1.0)
    before = layer.weight.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stepped, y = layer.local_step(x, target, fused)
    torch.testing.assert_close(stepped, loss.detach())
    assert not torch.equal(layer.weight, before)
    assert layer.scores(y).dtype == layer.projection.dtype == torch.float32


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((6, 2, 9, 11), r"\(6, 2, 9, 11\) becomes a 3 x 4 map.*\(3, 3\).*output_size=\(3, 4\)"),
        ((6, 3, 9, 8), r"`x` must be \(B, 2, H, W\)"),
        ((2, 9, 8), r"`x` must be \(B, 2, H, W\)"),
        ((6, 2, 2, 8), "2 padded pixels are fewer than the 3 that the kernel spans"),
    ],
)
@pytest.mark.parametrize("fused", [True, False])
def test_a_refused_batch_leaves_no_trace(shape: tuple[int, ...], message: str, fused: bool) -> None:
    layer, (_, target) = _layer(), _batch()
    make = optim.LocalAdam if fused else torch.optim.Adam
    optimizer = make(layer.parameters(), lr=0.1)
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(shape)
    with pytest.raises(ValueError, match=message):
        layer.local_step(x, target[: len(x)], optimizer)
    with pytest.raises(ValueError, match="labels 0"):
        layer.local_step(_batch()[0], target + 1, optimizer)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_parameters_missing_from_the_optimizer_are_named() -> None:
    layer, (x, target) = _layer(), _batch()
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match="does not hold a parameter"):
        layer.local_step(x, target, optim.LocalSGD([layer.projection], lr=0.1))
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "median"}, "`pool` must be 'max', 'avg' or None"),
        ({"pool_size": 0}, "`pool_size` must be at least 1"),
        ({"output_size": (3, 0)}, "`output_size` must be at least 1"),
        ({"symmetric_dim": 1}, "`symmetric_dim` must be at least 2"),
        ({"objective": "hinge"}, "unknown objective"),
        ({"negative_slope": -1.0}, "`negative_slope` must be >= 0 and finite"),
        ({"scale": 0.0}, "`scale` must be > 0"),
        ({"stride": 0}, "`stride` must be at least 1"),
        ({"dilation": (1, 0)}, "`dilation` must be at least 1"),
        ({"output_size": (3, 3, 3)}, r"`output_size` must be a size or \(height, width\)"),
        ({"vectors": torch.zeros(4, 4, 7)}, "must be finite and not zero"),
        ({"vectors": "random"}, "gaussian"),
        ({"vectors": torch.randn(4, 3, 7)}, r"must be \(4, 4, 7\)"),
        ({"grouping": 6}, r"`groups` must be 1\.\.5"),
        ({"grouping": torch.zeros(3, 5).long()}, r"must be \(4, 5\)"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _layer(**options)


def test_kernel_size_is_checked() -> None:
    with pytest.raises(ValueError, match="`kernel_size` must be at least 1"):
        SpelaConv2d(1, 6, 0, 4, (3, 3))


@pytest.mark.parametrize("kind", ["Adam", "SGD"])
def test_a_layer_in_16_bits_takes_torch_s_step(kind: str) -> None:
    layer, (x, target) = _layer().bfloat16(), _batch()
    twin, before = copy.deepcopy(layer), layer.weight.clone()
    layer.local_step(
        x.bfloat16(), target, getattr(optim, f"Local{kind}")(layer.parameters(), lr=1e-2)
    )
    twin.local_step(
        x.bfloat16(),
        target,
        getattr(torch.optim, kind)(twin.parameters(), lr=1e-2, fused=kind == "Adam"),
    )
    assert not torch.equal(layer.weight, before)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name


def test_a_batch_of_another_dtype_or_of_nothing_is_refused() -> None:
    layer, (x, target) = _layer(), _batch()
    for wrong in (x.double(), x.to(torch.uint8), x.half()):
        with pytest.raises(TypeError, match=r"but the layer torch\.float32: convert one"):
            layer.local_loss(wrong, target)
    with pytest.raises(ValueError, match="a batch needs at least one sample"):
        layer.local_step(x[:0], target[:0], optim.LocalAdam(layer.parameters()))
    assert int(layer.norm.num_batches_tracked) == 0


def test_own_vectors_are_normalised() -> None:
    rows = torch.arange(1.0, 4 * 4 * 7 + 1).reshape(4, 4, 7)
    layer = _layer(vectors=rows, grouping=class_grouping(4, CLASSES, 4))
    torch.testing.assert_close(layer.vectors, nn.functional.normalize(rows, dim=2))


def test_compile_of_the_local_loss() -> None:
    layer, (x, target) = _layer(), _batch()
    twin = copy.deepcopy(layer)
    loss, y = torch.compile(layer.local_loss, fullgraph=True)(x, target)
    loss.backward()
    expected, output = twin.local_loss(x, target)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(y, output)
    for name, parameter in twin.named_parameters():
        if name != "bias":  # zero but for rounding, in front of a batch norm
            torch.testing.assert_close(layer.get_parameter(name).grad, parameter.grad)


class _Doubled(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "norm",
    [
        nn.InstanceNorm2d(4, affine=True),
        nn.GroupNorm(2, 4),
        nn.BatchNorm2d(4, affine=False),
        _Doubled(4),
    ],
    ids=lambda norm: type(norm).__name__ + str(norm.affine),
)
def test_another_norm_is_what_a_step_runs(norm: nn.Module) -> None:
    x, target = torch.randn(6, 2, 8, 8), torch.arange(6) % 3
    layer = SpelaConv2d(2, 4, 3, 3, output_size=(3, 3), symmetric_dim=4)
    layer.norm = copy.deepcopy(norm)
    other = copy.deepcopy(layer)
    loss, y = layer.local_step(x, target, optim.LocalSGD(layer.parameters(), lr=0.1))
    expected, map_ = other.local_step(x, target, torch.optim.SGD(other.parameters(), lr=0.1))
    torch.testing.assert_close((loss, y), (expected, map_))
    for now, then in zip(layer.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(now, then)


def test_a_hook_on_the_norm_is_called() -> None:
    layer = SpelaConv2d(2, 4, 3, 3, output_size=(3, 3), symmetric_dim=4)
    calls: list[int] = []
    layer.norm.register_forward_hook(lambda module, args, y: calls.append(len(y)))
    layer.local_step(
        torch.randn(6, 2, 8, 8), torch.arange(6) % 3, optim.LocalSGD(layer.parameters(), lr=0.1)
    )
    assert calls == [6]


@pytest.mark.parametrize("make", [torch.optim.SGD, optim.LocalSGD])
def test_a_norm_that_keeps_no_statistics_moves_none(make: Any) -> None:
    layer = SpelaConv2d(1, 6, 3, 10, output_size=(3, 3), symmetric_dim=16)
    layer.norm.track_running_stats = False
    layer.local_step(torch.randn(5, 1, 8, 8), torch.arange(5), make(layer.parameters(), lr=0.1))
    assert layer.norm.num_batches_tracked == 0
    assert layer.norm.running_mean.tolist() == [0.0] * 6


def test_a_norm_without_statistics_goes_by_the_batchs_in_eval_mode_too() -> None:
    layer, (x, target) = _layer(dtype=torch.float64), _batch(torch.float64)
    layer.norm = nn.BatchNorm2d(4, track_running_stats=False, dtype=torch.float64)
    layers = layer.eval(), copy.deepcopy(layer)
    ours, theirs = (
        kind(each.parameters(), lr=0.5)
        for kind, each in zip((optim.LocalSGD, torch.optim.SGD), layers, strict=True)
    )
    check_layer_steps(layers, (ours, theirs), x, target, rtol=1e-9)


@pytest.mark.parametrize("name", ["projection_std", "negative_slope"])
def test_infinite_settings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be .* finite"):
        SpelaConv2d(1, 6, 3, 3, output_size=(2, 2), **{name: math.inf})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_pixels_are_refused_under_autocast_too(dtype: torch.dtype) -> None:
    layer = SpelaConv2d(1, 6, 3, 3, output_size=(3, 3), symmetric_dim=16)
    linear = SpelaLinear(4, 6, 3)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(TypeError, match="convert one"):
            layer(torch.ones(2, 1, 8, 8, dtype=dtype))
        with pytest.raises(TypeError, match=str(dtype).removeprefix("torch.")):
            linear.local_loss(torch.ones(2, 4, dtype=dtype), torch.tensor([0, 1]))
