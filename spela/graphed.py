"""GraphedStep: a network's whole training step as one CUDA graph: a launch instead of dozens."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from spela.layers.contract import FusedOptimizer
from spela.layers.steps import has_step_hooks
from spela_kernels.contracts import check_tensors
from spela_kernels.cosines import scalar_like
from spela_kernels.gpu.graphs import capture, host_waits
from spela_kernels.precision import without_grad, without_inference

__all__ = ["GraphedStep", "can_capture"]

_logger = logging.getLogger(__name__)


class _Learner(Protocol):
    """What is graphed: a SpelaSequential or one of the baselines, an nn.Module."""

    def local_step(self, x: Tensor, target: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        """One update; losses (L,)."""


class _Recorder(NamedTuple):
    """How a kind of device captures launches, and how it tells where Python waits for it."""

    capture: Callable[..., tuple[Callable[[], None], Tensor]]
    waits: Callable[[], AbstractContextManager[list[str]]]


_RECORDERS = {"cuda": _Recorder(capture, host_waits)}  # ROCm's devices are called so too


def can_capture(device: torch.device) -> bool:
    """Whether steps on a device can be captured at all.

    Example:
        >>> can_capture(torch.device("cpu"))
        False
    """
    return device.type in _RECORDERS


class _Rates:
    """The learning rates of an optimizer's groups in tensors on a device, where launches read them."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.optimizer = optimizer
        self.given: list[Any] = [None] * len(optimizer.param_groups)
        self.tensors = [
            torch.zeros(
                (),
                dtype=functools.reduce(
                    torch.promote_types, (p.dtype for p in group["params"]), torch.float32
                ),
                device=device,
            )
            for group in optimizer.param_groups
        ]
        self.update()

    def update(self) -> None:
        """Take the rates of the moment; one that has not changed launches nothing."""
        for index, (group, tensor) in enumerate(
            zip(self.optimizer.param_groups, self.tensors, strict=True)
        ):
            lr = group["lr"]
            if isinstance(lr, Tensor) or lr != self.given[index]:
                tensor.copy_(scalar_like(lr, tensor))
                self.given[index] = lr

    @contextmanager
    def in_place(self, **options: Any) -> Iterator[None]:
        """Inside, the optimizer's groups hold the tensors, and of the options given those that they have."""
        groups = self.optimizer.param_groups
        before = [dict(group) for group in groups]
        for group, tensor in zip(groups, self.tensors, strict=True):
            group["lr"] = tensor
            group.update({name: value for name, value in options.items() if name in group})
        try:
            yield
        finally:
            for group, values in zip(groups, before, strict=True):
                group.update(values)


class _Graph(NamedTuple):
    """A captured step, and the memory that it reads and writes."""

    situation: tuple[Any, ...]
    replay: Callable[[], None]
    x: Tensor
    target: Tensor
    rates: _Rates
    losses: Tensor  # (L,)
    held: list[Tensor]  # parameters, buffers and state: freed, their memory would be another's
    trained: list[nn.Parameter]


class GraphedStep:
    """`net.local_step(x, target, optimizer)` as one CUDA graph: one launch a step, the same bits.

    A step is some ten launches a layer, which a CPU issues more slowly than a GPU runs them. Here the first
    calls step as ever; once two calls in a row find the same situation, the step is captured, and from then
    on a call copies its batch into the graph's buffers and replays. The situation is all that launches are
    made of: shape, strides, dtype and device of the batch, autocast, modes and frozen parts of the network,
    where its tensors and the optimizer's lie, and all settings of the optimizer but the learning rate. A
    call in another one, such as an epoch's shorter last batch, steps without the graph; two in a row are
    captured anew.

    Learning rates are read at every call, so schedulers work as ever. Adam's counts, running statistics and
    torch's random generator, of which dropout draws, move on as they do without a graph. What lies on no GPU
    stays as it was at the capture: what Python code of modules decides, and torch's global settings.

    Not captured are networks and optimizers with hooks, which a replay would not call; optimizers that keep
    numbers on the CPU (torch's without `fused=True` or `capturable=True`); steps in which Python waits for
    the GPU, as those of unfused layers do with `LocalSGD`; and processes that share a network. A rate is
    rounded to float32, which torch's fused optimizers otherwise take in 64 bits.

    Args:
        net: A network with `local_step`, on any device; on a CPU nothing is captured.
        optimizer: Of its parameters.
        required: Raise where nothing can be captured, instead of stepping without a graph after one warning.

    Attributes:
        captured: Whether there is a graph.

    Raises:
        ValueError: When called: as `local_step`, or if a graph is required and cannot be had.
        TypeError: If `net` is no nn.Module.

    Example:
        >>> from spela.layers import SpelaLinear
        >>> from spela.network import SpelaSequential
        >>> from spela.optim import LocalAdam
        >>> net = SpelaSequential(SpelaLinear(4, 16, 3), SpelaLinear(16, 16, 3))
        >>> step = GraphedStep(net, LocalAdam(net.parameters(), lr=1e-3))
        >>> x, target = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
        >>> step(x, target).shape  # losses, as local_step's
        torch.Size([2])
        >>> step.captured  # on a GPU: from the third call on, once Adam has its state
        False
    """

    def __init__(
        self, net: _Learner, optimizer: torch.optim.Optimizer, *, required: bool = False
    ) -> None:
        if not isinstance(net, nn.Module):
            raise TypeError(f"`net` must be an nn.Module, got {type(net).__name__}")
        self.net: _Learner = net
        self.module: nn.Module = net
        self.optimizer = optimizer
        self.required = required
        self._graph: _Graph | None = None
        self._rehearsed: tuple[Any, ...] | None = None  # what the call before found
        self._refused: tuple[Any, ...] | None = None
        self._said = ""

    @property
    def captured(self) -> bool:
        return self._graph is not None

    def __call__(self, x: Tensor, target: Tensor) -> Tensor:
        """One training step.

        Args:
            x: A batch of inputs.
            target: (B,) int64 labels.

        Returns:
            (L,) losses from before the updates, in memory of their own.
        """
        check_tensors(x, target)
        recorder = _RECORDERS.get(x.device.type)
        if recorder is None:
            self._refuse(f"there are none on {x.device.type}", quiet=True)
            return self.net.local_step(x, target, self.optimizer)
        return self._step(x, target, recorder)

    @without_inference
    @without_grad
    def _step(self, x: Tensor, target: Tensor, recorder: _Recorder) -> Tensor:
        situation = self._situation(x, target)
        if self._graph is not None and self._graph.situation == situation:
            self._rehearsed = None
            return _replayed(self._graph, x, target)
        rehearsed, self._rehearsed = self._rehearsed == situation, None
        reason = situation[0] or _numbers_on_the_cpu(self.optimizer)
        if reason:
            self._refuse(reason)
        elif situation != self._refused:
            if not rehearsed:
                return self._rehearse(situation, x, target, recorder)
            if self._capture(situation, x, target, recorder):
                assert self._graph is not None
                return _replayed(self._graph, x, target)
        return self.net.local_step(x, target, self.optimizer)

    def _situation(self, x: Tensor, target: Tensor) -> tuple[Any, ...]:
        """Hooks, in words, and all that a captured step is made of: equal ones make the same launches."""
        kind, modules, state = x.device.type, _modules(self.module), self.optimizer.state
        found: list[Any] = [
            _hooks(modules, self.optimizer),
            *(x.shape, x.stride(), x.dtype, x.device),
            *(target.shape, target.stride(), target.dtype, target.device),
            *(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)),
        ]
        # Before every replay: loops in place of what would read better, and be slower.
        for module in modules:
            found += (module, module.training)
            for parameter in module._parameters.values():
                if parameter is not None:
                    found += (parameter.data_ptr(), parameter.requires_grad)
                    own = state.get(parameter)
                    if own:
                        for value in own.values():
                            found.append(value.data_ptr() if isinstance(value, Tensor) else value)
            for buffer in module._buffers.values():
                if buffer is not None:
                    found.append(buffer.data_ptr())
        for group in self.optimizer.param_groups:
            for name, value in group.items():
                if name not in ("params", "lr"):
                    found.append(value.data_ptr() if isinstance(value, Tensor) else value)
        return tuple(found)

    def _rehearse(
        self, situation: tuple[Any, ...], x: Tensor, target: Tensor, recorder: _Recorder
    ) -> Tensor:
        """A step as the captured one will be made, which tells whether it can be captured."""
        rates = _Rates(self.optimizer, x.device)
        own_x, own_target = _own(x, target)
        with rates.in_place(), recorder.waits() as waits:
            losses = self.net.local_step(own_x, own_target, self.optimizer)
        if waits:
            self._refused = situation
            self._refuse(f"Python waits for the GPU in {waits[0]}")
        else:
            self._rehearsed = situation
        return losses

    def _capture(
        self, situation: tuple[Any, ...], x: Tensor, target: Tensor, recorder: _Recorder
    ) -> bool:
        self._graph = None  # its memory is free for the next one's
        rates = _Rates(self.optimizer, x.device)
        own_x, own_target = _own(x, target)
        torch.clear_autocast_cache()  # of weights that were cast before
        try:
            # torch's optimizers let nobody capture a step who has not asked for it.
            fused = all(group.get("fused") for group in self.optimizer.param_groups)
            with rates.in_place(**({"capturable": True} if fused else {})):
                replay, losses = recorder.capture(
                    lambda: self.net.local_step(own_x, own_target, self.optimizer), x.device
                )
        except (
            Exception
        ) as error:  # whatever a GPU or a module raises: the step runs without a graph
            self._refused = situation
            self._refuse(" ".join(str(error).split()) or type(error).__name__)
            return False
        finally:
            torch.clear_autocast_cache()  # of what only the graph fills
        parameters, state = list(self.module.parameters()), self.optimizer.state
        held = [*parameters, *self.module.buffers()]
        for parameter in parameters:
            if parameter in state:
                held += (value for value in state[parameter].values() if isinstance(value, Tensor))
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        self._graph = _Graph(situation, replay, own_x, own_target, rates, losses, held, trained)
        return True

    def _refuse(self, reason: str, quiet: bool = False) -> None:
        """Say once why there is no graph, or raise where one is required."""
        if self.required:
            raise ValueError(f"this training step cannot be a CUDA graph: {reason}")
        if not quiet and reason != self._said:
            _logger.warning("spela: training steps run without a CUDA graph: %s", reason)
            self._said = reason


def _modules(net: nn.Module) -> list[nn.Module]:
    """Those of a network, faster than `net.modules()`; a shared one appears more than once."""
    found = [net]
    for module in found:  # which grows meanwhile
        found += (child for child in module._modules.values() if child is not None)
    return found


def _hooks(modules: list[nn.Module], optimizer: torch.optim.Optimizer) -> str:
    """Which hooks there are; empty: none."""
    forward: Any = _has_any_global_hook()
    gradient: Any = None
    for module in modules:
        forward = forward or module._forward_hooks or module._forward_pre_hooks
        gradient = gradient or module._backward_hooks or module._backward_pre_hooks
        for p in module._parameters.values():
            if p is not None:
                gradient = gradient or p._backward_hooks or p._post_accumulate_grad_hooks
    if forward:
        return "a module has forward hooks, which a replay would not call"
    if gradient:
        return "a gradient has hooks, which a replay would not call"
    if has_step_hooks(optimizer):
        return "the optimizer has step hooks, which a replay would not call"
    return ""


def _numbers_on_the_cpu(optimizer: torch.optim.Optimizer) -> str:
    """Whether an optimizer's launches are made of numbers that change, in words; empty: no."""
    if isinstance(optimizer, FusedOptimizer) or all(
        group.get("fused") or group.get("capturable") for group in optimizer.param_groups
    ):
        return ""
    return (
        f"{type(optimizer).__name__} keeps numbers on the CPU: build it with fused=True, or "
        "capturable=True where it has that"
    )


def _own(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """A batch in memory of its own, for rehearsal and capture alike.

    A slice may be strided or begin anywhere. Triton compiles another program for it, and cuDNN measures anew,
    which a capture does not survive.
    """
    return x.detach().clone(), target.clone()


def _replayed(graph: _Graph, x: Tensor, target: Tensor) -> Tensor:
    graph.x.copy_(x)
    graph.target.copy_(target)
    graph.rates.update()
    graph.replay()
    # As after every step: autograd must learn that what it saved of the parameters has changed.
    torch.autograd.graph.increment_version(graph.trained)
    return graph.losses.clone()
