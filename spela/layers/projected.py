"""ProjectedLayer: base class of layers that score and learn through a trainable projection."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from spela.layers.contract import LocalLayer
from spela_kernels import projection_forward, projection_loss
from spela_kernels.contracts import check_labels, check_target, check_tensors

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

    def _criterion(self) -> dict[str, Any]:
        return {"objective": self.objective, "scale": self.scale}

    def check_batch(self, x: Tensor, target: Tensor) -> None:
        """Refuse what would fail after the forward, which has by then updated running statistics."""
        check_tensors(x, target)
        check_target(x, target)
        check_labels(target, self.num_classes)
