"""ProjectedLayer: base class of layers that score and learn through a trainable projection."""

from __future__ import annotations

import math
from abc import abstractmethod
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from spela.layers.contract import FusedOptimizer, LocalLayer
from spela_kernels import projection_forward, projection_loss
from spela_kernels.contracts import check_labels, check_target, check_tensors
from spela_kernels.cosines import narrowed

__all__ = ["ProjectedLayer"]


class ProjectedLayer(LocalLayer):
    """A local layer that scores and learns by the `projection` op."""

    objective: str
    scale: float

    @abstractmethod
    def head_input(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """z (B, K, D), projection (K, D, d), class vectors (K, G, d) and groups (K, C) for outputs `y`.

        Raises:
            ValueError: If y is no output of this layer.
        """

    def scores(self, y: Tensor) -> Tensor:
        """Cosines of every kernel's projected output to its class vectors, mean over kernels; no gradients.

        Args:
            y: (B, ...) outputs of this layer.

        Returns:
            (B, C); a kernel whose projection is shorter than 1e-12, or so long that its squares overflow
            (1.8e19 in float32), adds 0 to every class.

        Raises:
            ValueError: If y is not such an output.
        """
        return projection_forward(*self.head_input(y))

    def cross_entropy(self, y: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy () of `scale` times the scores, differentiable: what backprop of this answer lowers.

        Args:
            y: (B, ...) outputs of this layer.
            target: (B,) int64 labels.

        Raises:
            ValueError: If y is not such an output.
        """
        return projection_loss(*self.head_input(y), target, objective="softmax", scale=self.scale)

    def _step_projection(
        self, rows: Tensor, target: Tensor, optimizer: FusedOptimizer
    ) -> tuple[Tensor, Tensor, float]:
        """Update the projection; loss (), the gradient of the rows (B, K, D) times a scale, and that scale.

        That is 1 but for rows in float16. Their gradient, of a mean over samples and kernels, is smaller than
        float16's numbers where there are many, so it is found in float32 and taken back into their range by a
        power of two; what it becomes further down has to be divided by that.
        """
        half = rows.dtype == torch.float16
        wide = torch.autocast(rows.device.type, enabled=False) if half else nullcontext()
        with wide:
            loss, gradient = optimizer.projection_step(
                rows.float() if half else rows, *self._projector(), target, **self._criterion()
            )
        if not half:
            return loss, gradient, 1.0
        scale = 2.0 ** round(math.log2(rows.shape[0] * rows.shape[1]))
        return loss, narrowed(gradient * scale, rows.dtype), scale

    @abstractmethod
    def _projector(self) -> tuple[Any, Tensor, Tensor]:
        """Projection (K, D, d), class vectors (K, G, d) and groups (K, C)."""

    def _criterion(self) -> dict[str, Any]:
        return {"objective": self.objective, "scale": self.scale}

    def check_batch(self, x: Tensor, target: Tensor) -> None:
        """Refuse what would fail after the forward, which has by then updated running statistics."""
        check_tensors(x, target)
        check_target(x, target)
        check_labels(target, self.num_classes)
