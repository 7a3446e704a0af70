"""The grouped projection's parity cases: everything the op computes, at sizes where kernels go wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor

from spela_kernels.contracts import Settings
from spela_kernels.objectives import OBJECTIVES, get_objective
from spela_kernels.projection.functional import projection_sgd_
from spela_kernels.projection.types import Call
from spela_kernels.proof.parity import every_second, make_state, make_step, unchanged

__all__ = ["CASES", "LARGE", "QUICK", "Case"]


@dataclass(frozen=True)
class Case:
    """A projection, its data and one optimizer step.

    Attributes:
        sizes: B, K, D, d, G, C.
        objective: A name from `OBJECTIVES`.
        rule: A name from `parity.RULES`.
        dtype: What the tensors are rounded to; the oracle starts from the same numbers.
        layout: contiguous, strided (no tensor is), or zero rows (some of z).
        params_dtype: Of projection and vectors; None: the case's dtype.
    """

    sizes: tuple[int, int, int, int, int, int]
    objective: str
    rule: str = "sgd"
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    params_dtype: torch.dtype | None = None
    op: ClassVar[str] = "projection"

    @property
    def launches(self) -> int:
        """Kernels that a step launches."""
        return 4 if get_objective(self.objective).all_classes else 2

    def tensors(
        self, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The op's tensors: the same numbers on every call.

        Args:
            dtype: Of z, and of the rest unless the case keeps that wider; the numbers are those that
                the case's own dtypes can represent.
            device: Where they are.

        Returns:
            z (B, K, D), projection (K, D, d), vectors (K, G, d), groups (K, C), target (B,).
        """
        batch, kernels, size, dim, count, classes = self.sizes
        g = torch.Generator().manual_seed(3)
        z = torch.randn(batch, kernels, size, generator=g)
        projection = torch.randn(kernels, size, dim, generator=g) / size**0.5
        vectors = torch.randn(kernels, count, dim, generator=g)
        vectors = torch.nn.functional.normalize(vectors, dim=2)
        groups = torch.randint(count, (kernels, classes), generator=g).to(device)
        target = torch.randint(classes, (batch,), generator=g).to(device)
        if self.layout == "zero rows":
            z[::4] = 0
            z[1, 1] = 0
        z = z.to(self.dtype).to(device, dtype)
        own = self.params_dtype or self.dtype
        wide = torch.promote_types(own, dtype)
        projection, vectors = (t.to(own).to(device, wide) for t in (projection, vectors))
        if self.layout == "strided":
            z, target = z.permute(1, 2, 0).contiguous().permute(2, 0, 1), every_second(target)
            projection, vectors = projection.mT.contiguous().mT, every_second(vectors)
            groups = groups.T.contiguous().T
        return z, projection, vectors, groups, target

    def call(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Call:
        """The case as back-ends take it, on new tensors; arguments as `tensors`."""
        return Call(*self.tensors(dtype, device), Settings(objective=self.objective))

    def run(
        self, backend: ModuleType, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Scores, forward, gradients, and a step with its state, as `parity.Case` says."""
        call = self.call(dtype, device)
        tensors = [tensor for tensor in call if isinstance(tensor, Tensor)]
        z, projection, *fixed = tensors
        before = [tensor.clone() for tensor in tensors]
        results: dict[str, Tensor] = {}

        def note(group: str, **tensors: Tensor) -> None:
            results.update({f"{group}.{name}": tensor for name, tensor in tensors.items()})

        saved = backend.forward(call)
        grad_loss = torch.full_like(saved.loss, 2.0)
        note("forward", scores=backend.scores(call), **saved._asdict())
        note("gradient", **backend.backward(call, saved, grad_loss)._asdict())
        unchanged(tensors, before)

        first, second = (make_state(torch.Generator().manual_seed(s), projection) for s in (1, 2))
        loss, dz = backend.step_(call, make_step(self.rule, z, first, second))
        note("step", loss=loss, dz=dz, first=first, second=second, projection=projection)
        unchanged((z, *fixed), (before[0], *before[2:]))
        return results

    def fused_step(self, device: torch.device | str) -> Callable[[], object]:
        """An SGD step of the public function, on tensors of its own."""
        tensors, lr = self.tensors(self.dtype, device), torch.tensor(0.1, device=device)
        return lambda: projection_sgd_(*tensors, lr, objective=self.objective)


CASES = {
    "ones": Case((1, 1, 1, 1, 1, 1), "mse"),
    "ones-softmax-fp16": Case((1, 1, 1, 1, 1, 1), "softmax", "adam", torch.float16),
    "primes": Case((7, 3, 13, 5, 2, 11), "angular", "momentum"),
    "block-plus-1": Case((33, 2, 65, 65, 17, 19), "softmax", "nesterov"),
    "block-minus-1": Case((31, 3, 63, 63, 15, 15), "euclidean", "adam"),
    "paper-fp16": Case((20, 4, 36, 100, 9, 10), "mse", "adam", torch.float16),
    "several-blocks": Case((70, 2, 100, 36, 3, 10), "log", "momentum"),
    "several-blocks-fp16": Case((70, 2, 100, 36, 40, 50), "softmax", "sgd", torch.float16),
    "long-rows": Case((18, 2, 20, 200, 3, 7), "softmax", "sgd"),
    "many-classes": Case((6, 2, 24, 20, 5, 1030), "softmax"),
    "many-kernels": Case((2, 33, 9, 16, 4, 600), "softmax", "adam"),
    "strided": Case((18, 3, 24, 40, 4, 6), "cosine", "momentum", layout="strided"),
    "strided-fp16": Case((18, 3, 24, 40, 4, 6), "softmax", "adam", torch.float16, "strided"),
    "mixed": Case((18, 3, 24, 40, 4, 6), "mse", "adam", torch.float16, params_dtype=torch.float32),
    "mixed-softmax": Case(
        (18, 3, 24, 40, 4, 6), "softmax", "sgd", torch.float16, params_dtype=torch.float32
    ),
    "block-head": Case((20, 1, 256, 128, 10, 10), "softmax", "adam"),
    "block-head-mixed": Case(
        (20, 1, 96, 128, 10, 10), "softmax", "momentum", torch.float16, params_dtype=torch.float32
    ),
    "zero-rows": Case((18, 3, 24, 20, 4, 6), "log", layout="zero rows"),
}
# Every row of the table of objectives, rows added later too.
CASES |= {name: Case((18, 2, 24, 20, 4, 6), name, "nesterov") for name in OBJECTIVES}
# Each of these has its own path through the kernels: label, all classes, odd strides.
QUICK = ("ones", "primes", "paper-fp16", "strided-fp16")
# On a GPU also sizes with every tile full and several waves of programs: the authors' layers.
LARGE = {
    "authors-30x30": Case((64, 128, 900, 100, 9, 10), "mse", "adam"),
    "authors-13x13": Case((64, 128, 169, 100, 9, 10), "mse"),
    "authors-13x13-softmax": Case((64, 128, 169, 100, 9, 10), "softmax", "momentum"),
    "1000-classes": Case((64, 128, 225, 128, 99, 1000), "softmax", "adam"),
}
