"""Activation checkpointing of a block's body: less memory for a second forward, the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["run_checkpointed"]


def run_checkpointed(body: nn.Module, x: Tensor) -> Tensor:
    """`body(x)`, of which only the inputs of its parts are kept for the backward pass.

    Args:
        body: Its children are run one by one if it is an nn.Sequential, else it as a whole.
        x: Its input.

    Returns:
        The body's output. The second forward draws the same random numbers as the first, and moves no batch
        norm's running statistics.

    Source: Chen et al. 2016 (arXiv 1604.06174); torch.utils.checkpoint.

    Example:
        >>> import torch
        >>> body = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        >>> run_checkpointed(body, torch.randn(5, 4)).sum().backward()
        >>> body[1].num_batches_tracked
        tensor(1)
    """
    parts = list(body) if type(body) is nn.Sequential else [body]
    for part in parts:
        x = checkpoint(part, x, use_reentrant=False, context_fn=_contexts_of(part))
    return x


def _contexts_of(part: nn.Module):  # type: ignore[no-untyped-def]
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_stay(part)

    return contexts


@contextmanager
def _statistics_stay(module: nn.Module) -> Iterator[None]:
    """Batch norms see copies of their running statistics inside, which nobody keeps."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [dict(norm._buffers) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        norm._buffers.update({k: None if b is None else b.clone() for k, b in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
