"""Frozen: a pretrained module in front of SPELA layers that stays exactly as it is."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Frozen"]


class Frozen(nn.Module):
    """A module that no longer learns: in eval mode for good, its parameters without gradients.

    `net.train()` would otherwise wake a backbone's dropout and move its batch norms' statistics. The
    module is frozen in place, not copied.

    Args:
        module: Any module that maps a tensor to a tensor.

    Shape:
        As the module's.

    Raises:
        TypeError: If `module` is no nn.Module.

    Example:
        >>> backbone = Frozen(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5))).train()
        >>> backbone.module.training, any(p.requires_grad for p in backbone.parameters())
        (False, False)
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"`module` must be an nn.Module, got {type(module).__name__}")
        self.module = module.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Frozen:
        """Only this wrapper's own flag follows `mode`; the module stays in eval mode."""
        super().train(False)
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        """The module's output."""
        return self.module(x)
