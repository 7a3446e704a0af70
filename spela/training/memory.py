"""Peak memory of one training step: tensors that the step allocates and that live at the same time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["peak_step_bytes"]


class _TensorMeter(TorchDispatchMode):
    """Counts the bytes of tensor storages from the operation that creates them to their release."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its whole compiler, which takes seconds, to keep it away from here."""
        return False

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.live = 0
        self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            self._note(tensor, 0)  # from before the step
        if func.namespace == "spela" and self.device.type == "cpu":
            # An op of ours is a Python function of many operations: count its temporaries too.
            with self:
                keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
                out = func.redispatch(keys, *args, **kwargs)
        else:
            out = func(*args, **kwargs)
        for tensor in _tensors(out):
            self._note(tensor, tensor.untyped_storage().nbytes())
        return out

    def _note(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known:
            return
        self.known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._released, key, size).atexit = False

    def _released(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def peak_step_bytes(
    step: Callable[[], Tensor], optimizer: torch.optim.Optimizer, device: torch.device
) -> tuple[Tensor, int]:
    """Run one training step and find the most bytes that its tensors took at the same time.

    A step that would take one compiled call (`spela_kernels.linear.steps`) goes operator by operator here: it
    agrees with the call to rounding, and rows that the call packs for its products are not counted.
    Gradients that an earlier step left are dropped first, so a method that keeps them between steps
    is charged for them. Weights, optimizer state and the batch exist before the step and do not count;
    optimizer state that a first step creates does: measure a later one. On a CPU this counts the
    tensors that operations return, SPELA's own ops looked into, but no scratch space inside an operation
    of torch; the figure is the same on every machine. On a GPU it is the allocator's peak.

    Args:
        step: The step, without arguments; what it changes is the same as without measuring.
        optimizer: The optimizer it uses.
        device: Where it computes.

    Returns:
        What `step` returned, and bytes.

    Example:
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        >>> x = torch.ones(10)  # float32: 40 bytes
        >>> peak_step_bytes(lambda: (x + 1).exp().sum(), optimizer, x.device)[1]
        80
    """
    optimizer.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = step()
        torch.cuda.synchronize(device)
        return result, torch.cuda.max_memory_allocated(device) - before
    meter = _TensorMeter(device)
    with meter:
        result = step()
    return result, meter.peak
