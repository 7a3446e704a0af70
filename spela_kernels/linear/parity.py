"""The linear layer's parity cases: everything a layer computes, at sizes where kernels go wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor

from spela_kernels.activations import ACTIVATIONS
from spela_kernels.contracts import Settings
from spela_kernels.linear.functional import linear_sgd_
from spela_kernels.linear.types import NO_BUFFERS, Call, Parameters
from spela_kernels.objectives import OBJECTIVES
from spela_kernels.proof.parity import every_second, make_state, make_step, unchanged

__all__ = ["CASES", "LARGE", "QUICK", "Case"]


@dataclass(frozen=True)
class Case:
    """A layer, its data and one optimizer step.

    Attributes:
        sizes: B, I, O, C.
        objective: A name from `OBJECTIVES`.
        activation: A name from `ACTIVATIONS`.
        rule: A name from `parity.RULES`.
        dtype: What the tensors are rounded to; the oracle starts from the same numbers.
        layout: contiguous, strided (no tensor is), no bias, or zero rows (every fourth of x).
        params_dtype: Of parameters and class vectors; None: the case's dtype.
    """

    sizes: tuple[int, int, int, int]
    objective: str
    activation: str
    rule: str = "sgd"
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    params_dtype: torch.dtype | None = None
    op: ClassVar[str] = "linear"
    launches: ClassVar[int] = 3

    def call(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Call:
        """The case as back-ends take it, on new tensors; arguments as `tensors`."""
        settings = Settings(self.activation, objective=self.objective)
        return Call(*self.tensors(dtype, device), settings)

    def tensors(
        self, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Parameters, Tensor, Tensor]:
        """Input, parameters, class vectors and labels: the same numbers on every call.

        Args:
            dtype: Of x, and of the rest unless the case keeps that wider; the numbers are those that
                the case's own dtypes can represent.
            device: Where they are.

        Returns:
            x (B, I), parameters, vectors (C, O), target (B,).
        """
        batch, inputs, outputs, classes = self.sizes
        g = torch.Generator().manual_seed(3)
        x = torch.randn(batch, inputs, generator=g)
        weight = torch.randn(outputs, inputs, generator=g) / inputs**0.5
        bias = 0.1 * torch.randn(outputs, generator=g)
        vectors = torch.nn.functional.normalize(torch.randn(classes, outputs, generator=g), dim=1)
        target = torch.randint(classes, (batch,), generator=g).to(device)
        if self.layout == "zero rows":
            x[::4], bias = 0, torch.zeros_like(bias)
        x = x.to(self.dtype).to(device, dtype)
        own = self.params_dtype or self.dtype
        wide = torch.promote_types(own, dtype)
        weight, bias, vectors = (t.to(own).to(device, wide) for t in (weight, bias, vectors))
        if self.layout == "strided":
            x, weight, bias = every_second(x), weight.t().contiguous().t(), every_second(bias)
            vectors, target = vectors.t().contiguous().t(), every_second(target)
        slope = None
        if self.activation == "prelu":
            slope = torch.tensor([0.25], dtype=wide, device=device)
        params = Parameters(weight, None if self.layout == "no bias" else bias, slope)
        return x, params, vectors, target

    def run(
        self, backend: ModuleType, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Scores, forward, gradients, and a step with its state, as `parity.Case` says."""
        call = self.call(dtype, device)
        params, fixed = call.params, [call.x, call.vectors, call.target]
        before = [None if t is None else t.clone() for t in (*fixed, *params)]
        results: dict[str, Tensor] = {}

        def note(group: str, **tensors: Tensor | None) -> None:
            results.update({f"{group}.{k}": t for k, t in tensors.items() if t is not None})

        _, scores = backend.scores(call)
        saved = backend.forward(call)
        grad_loss = torch.full_like(saved.loss, 2.0)
        note("forward", scores=scores, **saved._asdict())
        note("gradient", **backend.backward(call, saved, grad_loss)._asdict())
        unchanged([*fixed, *params], before)

        first, second = _states(params, 1), _states(params, 2)
        loss, y = backend.step_(call, make_step(self.rule, call.x, first, second, NO_BUFFERS))
        note("step", loss=loss, y=y)
        note("first", **first._asdict())
        note("second", **second._asdict())
        note("updated", **params._asdict())
        unchanged(fixed, before[:3])
        return results

    def fused_step(self, device: torch.device | str) -> Callable[[], object]:
        """An SGD step of the public function, on tensors of its own."""
        x, params, vectors, target = self.tensors(self.dtype, device)
        lr = torch.tensor(0.1, device=device)
        return lambda: linear_sgd_(
            x, params.weight, params.bias, vectors, target, lr, objective=self.objective
        )


def _states(params: Parameters, seed: int) -> Parameters:
    g = torch.Generator().manual_seed(seed)
    weight, bias, slope = (None if p is None else make_state(g, p) for p in params)
    return Parameters(weight, bias, slope)  # type: ignore[arg-type]


CASES = {
    "ones": Case((1, 1, 1, 1), "log", "leaky_relu"),
    "ones-softmax-fp16": Case((1, 1, 1, 1), "softmax", "prelu", "adam", torch.float16),
    "primes-no-bias": Case((7, 13, 5, 3), "angular", "tanh", "momentum", layout="no bias"),
    "block-plus-1": Case((33, 65, 65, 17), "softmax", "gelu", "nesterov"),
    "block-minus-1": Case((31, 63, 63, 15), "euclidean", "elu", "adam"),
    "paper-head-fp16": Case((50, 96, 10, 10), "log", "leaky_relu", "sgd", torch.float16),
    "several-blocks": Case((130, 136, 72, 10), "log", "leaky_relu", "momentum"),
    "several-blocks-fp16": Case((70, 136, 72, 40), "softmax", "relu", "sgd", torch.float16),
    "many-classes": Case((10, 24, 20, 1030), "softmax", "identity"),
    "finalised-twice": Case((130, 24, 200, 100), "softmax", "prelu", "adam"),
    "prelu": Case((20, 40, 34, 5), "mse", "prelu", "adam"),
    "strided": Case((18, 24, 40, 6), "cosine", "leaky_relu", "momentum", layout="strided"),
    "strided-fp16": Case((18, 24, 40, 6), "softmax", "prelu", "adam", torch.float16, "strided"),
    "mixed": Case(
        (18, 24, 40, 6), "softmax", "prelu", "momentum", torch.float16, params_dtype=torch.float32
    ),
    "mixed-label": Case(
        (33, 65, 34, 5), "log", "gelu", "adam", torch.float16, params_dtype=torch.float32
    ),
    "zero-rows": Case((18, 24, 20, 6), "log", "leaky_relu", layout="zero rows"),
}
# Every row of the tables of objectives and activations at least once, rows added later too.
_ROWS = range(max(len(OBJECTIVES), len(ACTIVATIONS)))
for _objective, _activation, _ in zip(cycle(OBJECTIVES), cycle(ACTIVATIONS), _ROWS, strict=False):
    CASES[f"{_objective}-{_activation}"] = Case((18, 24, 20, 6), _objective, _activation, "adam")
# Each of these has its own path through the kernels: label, all classes, learnt slope, odd strides.
QUICK = ("ones", "primes-no-bias", "paper-head-fp16", "strided-fp16")
# On a GPU also sizes with every tile full and several waves of programs: the paper's layers.
LARGE = {
    "paper-784-1024": Case((50, 784, 1024, 10), "log", "leaky_relu"),
    "paper-784-1024-softmax": Case((50, 784, 1024, 100), "softmax", "leaky_relu", "adam"),
    "paper-1000-34": Case((50, 1000, 34, 10), "log", "leaky_relu"),
    "batch-512-softmax": Case((512, 256, 2048, 1000), "softmax", "gelu"),
    "batch-512": Case((512, 1024, 1024, 10), "log", "leaky_relu", "momentum"),
}
