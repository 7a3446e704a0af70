"""SpelaConv2d: an nn.Conv2d, with norm, activation and pooling, that classifies and learns on its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spela.layers.contract import FusedOptimizer
from spela.layers.conv_stages import Stages, stages_backward, stages_forward
from spela.layers.hooks import call_with_hooks
from spela.layers.initial import hold_vectors, set_values
from spela.layers.maps import convolved_size
from spela.layers.plain import departure
from spela.layers.projected import ProjectedLayer
from spela.layers.steps import learning, owns, scaled_back, step_by_gradient
from spela.vectors import (
    Groups,
    as_size,
    check_directions,
    check_vector_kind,
    class_grouping,
    codes_problem,
    decode_groups,
    directions_of,
    encode_groups,
    group_vectors,
    most_groups,
)
from spela_kernels import projection_loss
from spela_kernels.contracts import check_negative_slope, check_scale
from spela_kernels.objectives import get_objective
from spela_kernels.precision import autocast_is_on, made_in_inference, recordable, without_inference

__all__ = ["SpelaConv2d"]

_Pair = int | tuple[int, int]


def _pair(name: str, sizes: _Pair) -> tuple[int, int]:
    both = tuple(sizes) if isinstance(sizes, Sequence) else (sizes, sizes)
    if len(both) != 2:
        raise ValueError(f"`{name}` must be a size or (height, width), got {sizes}")
    return as_size(name, both[0]), as_size(name, both[1])


def _is_plain(norm: nn.Module | None) -> bool:
    """Whether the fused step does what the module would: that of a plain batch norm with parameters."""
    if norm is None:
        return True
    if type(norm) is not nn.BatchNorm2d or departure(norm, nn.BatchNorm2d):
        return False
    return norm.affine and owns(norm, "weight", "bias")


class SpelaConv2d(ProjectedLayer, nn.Conv2d):
    """y = pool(leaky_relu(batch_norm(conv(x)))), each kernel's map turned towards the sample's class.

    Kernel k sorts the classes into groups of its own, flattens its map and multiplies it by a trainable
    projection P_k; the loss is mean_bk f(cos(y_bk P_k, u_bk)) with u_bk the fixed vector of the group of
    the label, or a function of the cosines' means over kernels. Convolution and batch norm start as
    torch's, P with N(0, projection_std^2). Batch norm uses running statistics in eval, as in torch. The
    (K, C) int64 group of each kernel and class is `grouping`; the state_dict holds it as `group_codes`, in
    a form that averages of weights and buffers leave as it is. A state_dict of nn.Conv2d's loads the
    convolution and leaves the rest as it is.

    Args:
        in_channels: Channels of the input.
        out_channels: K kernels.
        kernel_size: Of the convolution.
        num_classes: C, at least 2.
        output_size: (Ho, Wo) of y, after pooling; D = Ho * Wo, at least 2: one number has no direction.
        stride, padding, dilation, groups, bias: As in nn.Conv2d; zeros are padded.
        symmetric_dim: d, dimension of the class vectors.
        projection_std: Standard deviation of the projections at the start, > 0. The loss does not see
            their length, so it sets how fast they turn at a given learning rate; the authors' is 1.
        grouping: g groups in every kernel; (low, high): g_k drawn from low..high-1; a (K, C) tensor, as
            `grouping` of a layer to share it with; None: (2, C).
        batch_norm: Whether there is a batch norm, the submodule `norm`.
        pool: max, avg, or None.
        pool_size: Window and stride of the pooling.
        negative_slope: Slope of leaky_relu below zero, >= 0.
        objective: log, cosine, angular, euclidean, mse, or softmax (over all classes).
        scale: Factor of the scores in `softmax`; other objectives ignore it.
        vectors: symmetric, gaussian or uniform, or a (K, G, d) tensor of rows to normalise.
        generator: CPU source of all randomness; None: torch's default one.
        device: Where parameters and buffers live.
        dtype: Their dtype; None: torch's default dtype.

    Shape:
        Input (B, in_channels, H, W), output (B, K, Ho, Wo).

    Raises:
        ValueError: If a size is not positive, D is 1, a name is unknown, or a grouping or
            `vectors` does not fit.
        TypeError: If a size is no integer, `vectors` no tensor of floats, or a grouping not int64.

    Source: the authors' CNN notebooks.

    Example:
        >>> layer = SpelaConv2d(1, 6, 3, 10, output_size=(3, 3), symmetric_dim=16)
        >>> y = layer(torch.randn(5, 1, 8, 8))
        >>> y.shape, layer.scores(y).shape
        (torch.Size([5, 6, 3, 3]), torch.Size([5, 10]))
    """

    projection: nn.Parameter
    norm: nn.BatchNorm2d | None
    vectors: Tensor
    _vector_source: str | Tensor
    group_codes: Tensor

    @without_inference
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Pair,
        num_classes: int,
        output_size: _Pair,
        *,
        stride: _Pair = 1,
        padding: str | _Pair = 0,
        dilation: _Pair = 1,
        groups: int = 1,
        bias: bool = True,
        symmetric_dim: int = 100,
        projection_std: float = 1.0,
        grouping: Groups = None,
        batch_norm: bool = True,
        pool: str | None = "max",
        pool_size: int = 2,
        negative_slope: float = 1e-4,
        objective: str = "mse",
        scale: float = 20.0,
        vectors: str | Tensor = "symmetric",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        in_channels = as_size("in_channels", in_channels)
        out_channels = as_size("out_channels", out_channels)
        num_classes = as_size("num_classes", num_classes, least=2)
        height, width = _pair("output_size", output_size)
        if height * width < 2:
            raise ValueError(
                "`output_size` must have two numbers a kernel or more, as one has no direction that could "
                f"turn, got {(height, width)}: pool less"
            )
        symmetric_dim = as_size("symmetric_dim", symmetric_dim, least=2)
        pool_size = as_size("pool_size", pool_size)
        kernel_size = _pair("kernel_size", kernel_size)
        stride = _pair("stride", stride)
        dilation = _pair("dilation", dilation)
        if not 0 < projection_std < math.inf:
            raise ValueError(f"`projection_std` must be > 0 and finite, got {projection_std}")
        if pool not in ("max", "avg", None):
            raise ValueError(f"`pool` must be 'max', 'avg' or None, got {pool!r}")
        check_scale(scale)
        check_negative_slope(negative_slope)
        get_objective(objective)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        nn.Conv2d.__init__(
            self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            **factory,
        )  # fmt: skip
        self.num_classes = num_classes
        self.output_size = (height, width)
        self.symmetric_dim = symmetric_dim
        self.projection_std = projection_std
        self.pool = pool
        self.pool_size = pool_size
        self.negative_slope = negative_slope
        self.objective = objective
        self.scale = scale
        self.norm = nn.BatchNorm2d(out_channels, **factory) if batch_norm else None
        shape = (out_channels, height * width, symmetric_dim)
        self.projection = nn.Parameter(torch.empty(shape, **factory))
        if isinstance(grouping, Tensor):
            grouping = class_grouping(out_channels, num_classes, grouping)  # checked, and a copy
        most = most_groups(grouping, num_classes)
        self._group_source = grouping  # kept: `reset_parameters` starts from it again
        codes = torch.empty(out_channels, num_classes, dtype=torch.int64, device=self.weight.device)
        self.register_buffer("group_codes", codes)
        hold_vectors(self, vectors, self.weight.new_empty(out_channels, most, symmetric_dim))
        self._initialise(generator)

    @property
    def grouping(self) -> Tensor:
        """(K, C) int64: the group of each class in each kernel."""
        return decode_groups(self.group_codes)

    @grouping.setter
    def grouping(self, grouping: Tensor) -> None:
        self.group_codes = encode_groups(grouping)

    def _class_vectors(self, grouping: Tensor, generator: torch.Generator | None) -> Tensor:
        if isinstance(self._vector_source, str):
            counts, most = (grouping.amax(dim=1) + 1).tolist(), self.vectors.shape[1]
            return group_vectors(
                self._vector_source, counts, self.symmetric_dim, most, generator=generator
            )
        own = grouping.to(self._vector_source.device)
        check_directions(
            self._vector_source[torch.arange(len(own), device=own.device)[:, None], own]
        )
        return directions_of(self._vector_source)

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator | None) -> None:
        check_vector_kind(self._vector_source)
        if self.weight.is_meta:  # nothing to hold values: `to_empty`, then `reset_parameters`
            return
        own = class_grouping(
            self.out_channels, self.num_classes, self._group_source, generator=generator
        )
        self.group_codes.copy_(encode_groups(own))
        self.vectors.copy_(self._class_vectors(own, generator))
        where = "cpu" if generator is None else generator.device
        bound = 1 / math.sqrt(self.weight[0].numel())
        for name in ("weight", "bias"):
            parameter = getattr(self, name)
            if parameter is not None:
                draw = torch.empty(parameter.shape, dtype=torch.float32, device=where)
                set_values(self, name, draw.uniform_(-bound, bound, generator=generator))
        draw = torch.empty(self.projection.shape, dtype=torch.float32, device=where)
        draw.normal_(0.0, self.projection_std, generator=generator)
        set_values(self, "projection", draw)
        if self.norm is not None:
            self.norm.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw groups, class vectors, convolution and projection anew, and reset the batch norm.

        From torch's default generator, in the constructor's order: after `torch.manual_seed(s)` the
        layer has the bits of one built after it, or with a generator of that seed. So a layer that was
        built on the meta device starts as any other once `to_empty` has given it memory.
        """
        if "vectors" in self._buffers:  # nn.Conv2d calls this before there are any
            self._initialise(None)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        key, plain = f"{prefix}group_codes", state_dict.pop(f"{prefix}grouping", None)
        if plain is not None:  # a state with the groups themselves in place of their codes
            state_dict[key] = encode_groups(plain)
        codes = state_dict.get(key)
        if codes is not None and not codes.is_meta and codes.numel():
            problem = codes_problem(codes.long(), self.vectors.shape[1])
            if problem:
                rest[-1].append(f"{key} {problem}")
                state_dict[key] = self.group_codes
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _check_input(self, x: Tensor) -> None:
        """Refuse what would fail after the forward, which has by then updated running statistics."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"`x` must be (B, {self.in_channels}, H, W), got {tuple(x.shape)}")
        cast = x.is_floating_point() and autocast_is_on(x.device.type)
        own = self.vectors.dtype  # the weight's, which something may have to compute
        if x.dtype != own and not cast:
            pixels = ", pixels by x.float() / 255" if x.dtype == torch.uint8 else ""
            raise TypeError(f"`x` is {x.dtype} but the layer {own}: convert one{pixels}")
        height, width = convolved_size(self, x.shape[2:])
        window = self.pool_size if self.pool else 1
        pooled = (height // window, width // window)
        if pooled != self.output_size:
            raise ValueError(
                f"`x` {tuple(x.shape)} becomes a {pooled[0]} x {pooled[1]} map, but `output_size` is "
                f"{self.output_size}: build the layer with output_size={pooled}"
            )

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.kernel_size != (1, 1) or self.stride == (1, 1):
            return super()._conv_forward(input, weight, bias)
        # The pixels between are left out first: with channels last in memory, torch's weight gradient of a
        # 1 x 1 convolution with a stride is wrong, and writes where it must not (2.14, CPUs with AVX2, less
        # than 8 channels).
        down, right = self.stride
        padded = nn.functional.pad(input, self._reversed_padding_repeated_twice)
        kept = padded[..., ::down, ::right]
        return nn.functional.conv2d(kept, weight, bias, groups=self.groups)

    def forward(self, x: Tensor) -> Tensor:
        """Layer output: x (B, in_channels, H, W) -> y (B, K, Ho, Wo); plain torch."""
        self._check_input(x)
        y = self._conv_forward(x, self.weight, self.bias)
        if self.norm is not None:
            y = self.norm(y)
        # In place: neither batch norm nor convolution needs its output again.
        y = nn.functional.leaky_relu(y, self.negative_slope, inplace=True)
        if self.pool == "max":
            y = nn.functional.max_pool2d(y, self.pool_size)
        elif self.pool == "avg":
            y = nn.functional.avg_pool2d(y, self.pool_size)
        return y

    def head_input(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `spela_kernels.projection_forward` takes for outputs (B, K, Ho, Wo) of this layer.

        Raises:
            ValueError: If y is not such an output.
        """
        if y.dim() != 4 or y.shape[2:] != self.output_size:
            expected = ", ".join(map(str, (self.out_channels, *self.output_size)))
            raise ValueError(f"`y` must be (B, {expected}), got {tuple(y.shape)}")
        return y.flatten(2), *self._projector()

    def _projector(self) -> tuple[nn.Parameter, Tensor, Tensor]:
        return self.projection, self.vectors, self.grouping

    def local_loss(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Loss () differentiable in this layer's parameters only, and the detached output.

        Args:
            x: (B, in_channels, H, W); receives no gradient.
            target: (B,) int64 labels.

        Returns:
            loss (), y (B, K, Ho, Wo).

        Raises:
            ValueError: On a shape, device or label that does not fit.
            TypeError: On dtypes that do not fit.

        Example:
            >>> layer = SpelaConv2d(1, 6, 3, 10, output_size=(3, 3), symmetric_dim=16)
            >>> loss, y = layer.local_loss(torch.randn(2, 1, 8, 8), torch.tensor([3, 9]))
            >>> loss.backward()
            >>> layer.projection.grad.shape
            torch.Size([6, 9, 16])
        """
        self.check_batch(x, target)

        def run(x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.forward(recordable(x).detach())
            loss = projection_loss(y.flatten(2), *self._projector(), target, **self._criterion())
            return loss, y.detach()

        return call_with_hooks(self, x, run)

    @learning
    def local_step(
        self, x: Tensor, target: Tensor, optimizer: torch.optim.Optimizer
    ) -> tuple[Tensor, Tensor]:
        """Forward and update in place, under `torch.no_grad` and `torch.inference_mode` too.

        The projection's gradient is never stored. No `.grad` is read or changed, and the optimizer's step
        hooks are called once: `spela.layers.steps`.

        Args:
            x: (B, in_channels, H, W).
            target: (B,) int64 labels.
            optimizer: `LocalSGD` or `LocalAdam` (the projection in one fused op), or any torch
                optimizer that holds this layer's parameters. Frozen parameters stay.

        Returns:
            loss () and y (B, K, Ho, Wo), both from before the update.

        Raises:
            ValueError: As `local_loss`, or if the optimizer does not hold the parameters.
            TypeError: On dtypes that do not fit.
        """
        parameters = list(self.parameters())
        own = owns(self, "weight", "bias", "projection") and _is_plain(self.norm)
        # In 16 bits, the fused step's moments and gradients would be float32.
        own = own and self.weight.element_size() > 2 and not made_in_inference(self.weight)
        if not (isinstance(optimizer, FusedOptimizer) and own) or not all(
            p.requires_grad and optimizer.can_fuse([p]) for p in parameters
        ):
            return step_by_gradient(self, x, target, optimizer)
        self.check_batch(x, target)
        return call_with_hooks(self, x, lambda x: self._fused_step(x, target, optimizer))

    def _fused_step(
        self, x: Tensor, target: Tensor, optimizer: FusedOptimizer
    ) -> tuple[Tensor, Tensor]:
        self._check_input(x)
        optimizer.check_remembered(self.parameters())
        return optimizer.between_hooks(self._fused_update, x, target, optimizer)

    def _fused_update(
        self, x: Tensor, target: Tensor, optimizer: FusedOptimizer
    ) -> tuple[Tensor, Tensor]:
        stages = Stages(self, self.norm, self.negative_slope, self.pool, self.pool_size)
        done = stages_forward(stages, x)
        loss, dz, scale = self._step_projection(done.rows, target, optimizer)
        found = stages_backward(stages, done, dz.unflatten(2, self.output_size))
        optimizer.update(scaled_back(found.items(), scale))
        return loss, done.y

    def extra_repr(self) -> str:
        """nn.Conv2d's line, then what makes this layer a SPELA layer."""
        return (
            f"{nn.Conv2d.extra_repr(self)}, num_classes={self.num_classes}, "
            f"output_size={self.output_size}, symmetric_dim={self.symmetric_dim}, "
            f"pool={self.pool}, objective={self.objective}"
        )
