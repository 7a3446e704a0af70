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
        body: Its children are run one by one if it is an nn.Sequential, one that works in place together with
            the one before, whose output it overwrites; else it as a whole.
        x: Its input.

    Returns:
        The body's output. The second forward draws the same random numbers as the first and starts from the
        same buffers, so that it moves no running statistics and no spectral norm's vectors.

    Source: Chen et al. 2016 (arXiv 1604.06174); torch.utils.checkpoint.

    Example:
        >>> import torch
        >>> body = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        >>> run_checkpointed(body, torch.randn(5, 4)).sum().backward()
        >>> body[1].num_batches_tracked
        tensor(1)
    """
    for part in _parts_of(body):
        x = checkpoint(part, x, use_reentrant=False, context_fn=_contexts_of(part))
    return x


def _parts_of(body: nn.Module) -> list[nn.Module]:
    if type(body) is not nn.Sequential:
        return [body]
    runs: list[list[nn.Module]] = []
    for child in body:
        if runs and _begins_in_place(child):
            runs[-1].append(child)
        else:
            runs.append([child])
    return [run[0] if len(run) == 1 else nn.Sequential(*run) for run in runs]


def _begins_in_place(module: nn.Module) -> bool:
    while type(module) is nn.Sequential and len(module):
        module = module[0]
    return bool(getattr(module, "inplace", False))


def _contexts_of(part: nn.Module):  # type: ignore[no-untyped-def]
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        before = [
            {
                name: None if buffer is None else buffer.clone()
                for name, buffer in m._buffers.items()
            }
            for m in part.modules()
        ]
        return nullcontext(), _with_buffers(part, before)

    return contexts


@contextmanager
def _with_buffers(module: nn.Module, before: list[dict[str, Tensor | None]]) -> Iterator[None]:
    """Inside, all parts have these buffers, such as running statistics from before the first forward."""
    parts = list(module.modules())
    kept = [dict(part._buffers) for part in parts]
    for part, buffers in zip(parts, before, strict=True):
        part._buffers.update(buffers)
    try:
        yield
    finally:
        for part, buffers in zip(parts, kept, strict=True):
            part._buffers.update(buffers)
