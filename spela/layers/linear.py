"""SpelaLinear: an nn.Linear, with an activation, that classifies and learns on its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from spela.layers.contract import FusedOptimizer, LocalLayer
from spela.layers.hooks import call_with_hooks
from spela.layers.initial import hold_vectors, place_vectors, set_values
from spela.layers.steps import learning, owns, step_by_gradient
from spela.vectors import as_size
from spela_kernels import linear_loss
from spela_kernels.activations import get_activation
from spela_kernels.contracts import (
    check_features,
    check_negative_slope,
    check_scale,
    check_tensors,
)
from spela_kernels.cosines import unit_rows
from spela_kernels.linear import Parameters
from spela_kernels.objectives import get_objective
from spela_kernels.precision import autocast_is_on, made_in_inference, without_inference

__all__ = ["SpelaLinear"]

_WEIGHT_STARTS = ("kaiming_uniform", "kaiming_normal")
_BIAS_STARTS = ("zeros", "uniform")


class SpelaLinear(LocalLayer, nn.Linear):
    """y = phi(x W^T + b), trained to turn y towards the fixed vector of the sample's class.

    The loss is mean_i f(cos(y_i, v_label(i))), or a function of the cosines to all class vectors.
    Weights are initialised with variance 2 / in_features. Class vectors are the
    buffer `vectors` and part of the state_dict; one of nn.Linear's, which has none, leaves them as they are.

    Args:
        in_features: I.
        out_features: O; more outputs than classes help (paper, Table 2).
        num_classes: C, at least 2.
        bias: Whether the layer has a bias.
        activation: leaky_relu, relu, tanh, elu, gelu, identity, or prelu (one learnt slope).
        negative_slope: Slope of leaky_relu below zero, or prelu's initial one.
        objective: log, cosine, angular, euclidean, mse, or softmax (over all classes).
        scale: Factor of the cosines in `softmax`; other objectives ignore it.
        vectors: symmetric, gaussian or uniform, or a (C, O) tensor of rows to normalise.
        init: kaiming_uniform (U(+-sqrt(6 / in_features))) or kaiming_normal (N(0, 2 / in_features)).
        bias_init: zeros, or uniform (U(+-1 / sqrt(in_features)), as nn.Linear's).
        generator: Source of the class vectors and initial weights; None: torch's default one.
        device: Where parameters and vectors live.
        dtype: Their dtype; None: torch's default dtype.

    Shape:
        Input (*, I), output (*, O). Local losses and steps take (B, I).

    Raises:
        ValueError: If a size is not positive, a name is unknown or `vectors` has the wrong shape.
        TypeError: If a size is no integer, or `vectors` no tensor of floats.

    Source: TMLR 2025, Section 3.

    Example:
        >>> layer = SpelaLinear(4, 8, num_classes=3)
        >>> y = layer(torch.randn(5, 4))
        >>> layer.scores(y).shape
        torch.Size([5, 3])
    """

    weight: nn.Parameter
    bias: nn.Parameter | None  # type: ignore[assignment]
    slope: nn.Parameter | None
    vectors: Tensor
    _vector_source: str | Tensor

    @without_inference
    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_classes: int,
        *,
        bias: bool = True,
        activation: str = "leaky_relu",
        negative_slope: float = 1e-3,
        objective: str = "log",
        scale: float = 20.0,
        vectors: str | Tensor = "symmetric",
        init: str = "kaiming_uniform",
        bias_init: str = "zeros",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        in_features = as_size("in_features", in_features)
        # One has no direction to turn.
        out_features = as_size("out_features", out_features, least=2)
        num_classes = as_size("num_classes", num_classes, least=2)
        if init not in _WEIGHT_STARTS:
            raise ValueError(f"`init` must be one of {', '.join(_WEIGHT_STARTS)}, got {init!r}")
        if bias_init not in _BIAS_STARTS:
            raise ValueError(
                f"`bias_init` must be one of {', '.join(_BIAS_STARTS)}, got {bias_init!r}"
            )
        get_activation(activation)
        get_objective(objective)
        check_scale(scale)
        if activation == "leaky_relu":
            check_negative_slope(negative_slope)
        elif not math.isfinite(negative_slope):
            raise ValueError(f"`negative_slope` must be finite, got {negative_slope}")
        nn.Linear.__init__(self, in_features, out_features, bias, device=device, dtype=dtype)
        self.num_classes = num_classes
        self.activation = activation
        self.negative_slope = negative_slope
        self.objective = objective
        self.scale = scale
        self.init = init
        self.bias_init = bias_init
        slope = nn.Parameter(self.weight.new_empty(1)) if activation == "prelu" else None
        self.register_parameter("slope", slope)
        hold_vectors(self, vectors, self.weight.new_empty(num_classes, out_features))
        self._initialise(generator)

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator | None) -> None:
        if not place_vectors(self, generator):
            return
        # Drawn on the generator's device, so that a seed means the same weights everywhere.
        where = "cpu" if generator is None else generator.device
        draw = torch.empty((self.out_features, self.in_features), dtype=torch.float32, device=where)
        if self.init == "kaiming_normal":
            draw.normal_(0.0, math.sqrt(2 / self.in_features), generator=generator)
        else:
            bound = math.sqrt(6 / self.in_features)
            draw.uniform_(-bound, bound, generator=generator)
        set_values(self, "weight", draw)
        if self.bias is not None:
            draw = torch.zeros(self.out_features, dtype=torch.float32, device=where)
            if self.bias_init == "uniform":
                bound = 1 / math.sqrt(self.in_features)
                draw.uniform_(-bound, bound, generator=generator)
            set_values(self, "bias", draw)
        if self.slope is not None:
            first = torch.tensor([self.negative_slope], dtype=torch.float64, device="cpu")
            set_values(self, "slope", first)

    def reset_parameters(self) -> None:
        """Draw class vectors, weights and bias anew, and put prelu's slope back.

        From torch's default generator, in the constructor's order: after `torch.manual_seed(s)` the
        layer has the bits of one built after it, or with a generator of that seed. So a layer that was
        built on the meta device starts as any other once `to_empty` has given it memory.
        """
        if "vectors" in self._buffers:  # nn.Linear calls this before there are any
            self._initialise(None)

    def forward(self, x: Tensor) -> Tensor:
        """Layer output: x (*, I) -> y (*, O); plain torch, so autograd, hooks and export work.

        Under float32 weights an input in 16 bits gives an output in 16 bits, as in a step.

        Raises:
            ValueError: On another number of features, or another device.
            TypeError: On dtypes that do not fit.
        """
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        slope: Tensor | float = self.negative_slope if self.slope is None else self.slope
        # Autocast casts by itself; a tracer of graphs has no tensor to look at.
        if isinstance(x, Tensor) and not autocast_is_on(x.device.type):
            check_features(x, weight)
            if x.dtype != weight.dtype:
                weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
                slope = slope.to(x.dtype) if isinstance(slope, Tensor) else slope
        return get_activation(self.activation).forward(nn.functional.linear(x, weight, bias), slope)

    def scores(self, y: Tensor) -> Tensor:
        """Cosines of layer outputs to the class vectors.

        Args:
            y: (*, O) outputs of this layer.

        Returns:
            (*, C); a row shorter than 1e-12, or so long that its squares overflow (1.8e19 in float32), has no
            direction and scores 0 for every class. In the vectors' dtype, under autocast too.
        """
        if autocast_is_on(y.device.type):
            with torch.autocast(y.device.type, enabled=False):
                return self.scores(y)
        unit, _ = unit_rows(y.to(self.vectors.dtype))
        return unit @ self.vectors.T

    def _settings(self) -> dict[str, str | float]:
        return {
            "activation": self.activation,
            "negative_slope": self.negative_slope,
            "objective": self.objective,
            "scale": self.scale,
        }

    def local_loss(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Loss () differentiable in this layer's parameters only, and the detached output.

        Args:
            x: (B, I); receives no gradient.
            target: (B,) int64 labels.

        Returns:
            loss (), y (B, O).

        Raises:
            ValueError: On a shape, device or label that does not fit.
            TypeError: On dtypes that do not fit.

        Example:
            >>> layer = SpelaLinear(4, 8, num_classes=3)
            >>> loss, y = layer.local_loss(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))
            >>> loss.backward()
            >>> layer.weight.grad.shape
            torch.Size([8, 4])
        """
        check_tensors(x, target)
        return call_with_hooks(
            self,
            x,
            lambda x: linear_loss(
                x,
                self.weight,
                self.bias,
                self.vectors,
                target,
                slope=self.slope,
                **self._settings(),  # type: ignore[arg-type]
            ),
        )

    @learning
    def local_step(
        self, x: Tensor, target: Tensor, optimizer: torch.optim.Optimizer
    ) -> tuple[Tensor, Tensor]:
        """Forward and update in place, under `torch.no_grad` and `torch.inference_mode` too.

        No `.grad` is read or changed, and the optimizer's step hooks are called once: `spela.layers.steps`.

        Args:
            x: (B, I).
            target: (B,) int64 labels.
            optimizer: `LocalSGD` or `LocalAdam` (one fused op), or any torch optimizer that holds
                this layer's parameters. A frozen layer (requires_grad False) only runs forward.

        Returns:
            loss () and y (B, O), both from before the update.

        Raises:
            ValueError: As `local_loss`, or if the optimizer does not hold the parameters.
            TypeError: On dtypes that do not fit.
        """
        if not isinstance(optimizer, FusedOptimizer) or not owns(self, "weight", "bias", "slope"):
            return step_by_gradient(self, x, target, optimizer)
        weight, bias, slope = self.weight, self.bias, self.slope  # once: nn.Module looks them up
        parameters = [p for p in (weight, bias, slope) if p is not None]
        trained = [p.requires_grad for p in parameters]
        if not all(trained) or made_in_inference(weight) or not optimizer.can_fuse(parameters):
            return step_by_gradient(self, x, target, optimizer)
        return call_with_hooks(
            self,
            x,
            lambda x: optimizer.between_hooks(
                optimizer.linear_step,
                x,
                Parameters(weight, bias, slope),
                self.vectors,
                target,
                **self._settings(),
            ),
        )

    def extra_repr(self) -> str:
        """nn.Linear's line, then what makes this layer a SPELA layer."""
        leaky = self.activation == "leaky_relu"
        slope = f", negative_slope={self.negative_slope}" if leaky else ""
        scale = f", scale={self.scale}" if self.objective == "softmax" else ""
        return (
            f"{nn.Linear.extra_repr(self)}, num_classes={self.num_classes}, "
            f"activation={self.activation}{slope}, objective={self.objective}{scale}"
        )
