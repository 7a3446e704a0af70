"""A CUDA graph's stand-in on the CPU: operators recorded with exactly what they were given, and done again.

As at a capture, nothing is computed: what the recorded run changed is put back. As in a graph, a replay runs
no Python of the step, and every address and every number that is no tensor are those of the recording.
Reading a tensor's value on the host is refused, as a capture refuses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spela import graphed
from spela_kernels import contracts, use_backend
from spela_kernels.pooling import compiled

# Their results depend on values, which Python would have to wait for.
_READS = {
    "_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "item", "allclose",
}  # fmt: skip
_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class HostReadError(RuntimeError):
    """A step read a tensor's value in Python."""


class Tape(TorchDispatchMode):
    """Records operators, those inside this library's ops too."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any, list[Tensor]]] = []
        self.older: list[Tensor] = []  # what it writes that was there before
        self._new: set[int] = set()
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "spela":
            with self:
                return func.redispatch(
                    torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **kwargs
                )
        name = func._schema.name.partition("::")[2]
        if name in _READS:
            raise HostReadError(f"the step reads a value on the host: {name}")
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._keep(value)
        self._keep(kwargs.get("out"))
        if "batch_norm" in name:  # moves running statistics, which its schema does not say
            self._keep(args)
        out = func(*args, **kwargs)
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        fresh = [t for t in _tensors(out) if t.untyped_storage()._cdata not in given]  # no views
        self._new |= {tensor.untyped_storage()._cdata for tensor in fresh}
        self.calls.append((func, args, kwargs, out, [] if name in _EMPTY else fresh))
        return out

    def _keep(self, values: Any) -> None:
        for tensor in _tensors(values):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._new and storage._cdata not in self._before:
                self._before[storage._cdata] = (storage, storage.clone())
                self.older.append(tensor)

    def undo(self) -> None:
        """Put back what the recorded operators changed of older tensors."""
        for storage, before in self._before.values():
            storage.copy_(before)
        self._before.clear()

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)  # what it casts is recorded
    def replay(self) -> None:
        """The same operators on the same memory."""
        for func, args, kwargs, out, fresh in self.calls:
            again = _tensors(func(*args, **kwargs))
            for tensor, value in zip(_tensors(out), again, strict=True):
                if any(tensor is one for one in fresh):
                    tensor.copy_(value)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class Recorder:
    """Takes CUDA's place in `spela.graphed`; keeps its tapes."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []
        self.replays = 0
        self.waits: list[str] = []  # what the next rehearsals find

    def capture(
        self, run: Callable[[], Tensor], device: torch.device
    ) -> tuple[Callable[[], None], Tensor]:
        """Record a step on a new tape, and compute nothing."""
        tape, drawn = Tape(), torch.get_rng_state()
        try:
            with tape:
                losses = run()
        finally:
            tape.undo()
            torch.set_rng_state(drawn)
        self.tapes.append(tape)

        def replay() -> None:
            self.replays += 1
            # Autograd does not see a graph write.
            with torch.autograd._unsafe_preserve_version_counter(tuple(tape.older)):
                tape.replay()

        return replay, losses

    @contextmanager
    def host_waits(self) -> Iterator[list[str]]:
        """As CUDA's."""
        yield self.waits


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """Steps on the CPU are captured on tapes; they take the operators that a GPU would be asked for."""
    made = Recorder()
    monkeypatch.setitem(graphed._RECORDERS, "cpu", graphed._Recorder(made.capture, made.host_waits))
    # Labels' values are read on the CPU only, compiled passes are no operators.
    monkeypatch.setattr(contracts, "_check_range", lambda *args: None)
    for name in ("window_maxima", "activate", "descend"):
        monkeypatch.setattr(compiled, name, lambda *args: None)
    with use_backend("reference"):
        yield made
