"""The local step: when it learns, which parameters it may move, and what it leaves as it was.

A step learns wherever it is called, under `torch.no_grad` and `torch.inference_mode` too, and in the same
bits: nothing is stored for a backward pass, so people turn gradients off around it. It moves parameters of
the layer that learns and of no other, and neither reads nor changes any `.grad`: gradients that a loss of the
caller's left there, the layer's own included, wait for the caller's `optimizer.step()`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from spela.layers.contract import FusedOptimizer, LocalLayer
from spela_kernels.contracts import check_tensors
from spela_kernels.precision import autocast_is_on, made_in_inference, recordable

__all__ = [
    "apart",
    "check_step",
    "has_step_hooks",
    "learning",
    "not_held",
    "owns",
    "rates_kept",
    "scaled_back",
    "set_rates",
    "step_by_gradient",
    "step_on",
    "unshared",
]

_Method = TypeVar("_Method", bound=Callable[..., Any])
_Key = TypeVar("_Key")


def learning(step: _Method) -> _Method:
    """Decorator of a local step: gradients and inference mode are off inside, whatever is on outside.

    Under autocast, what torch keeps of the weights in 16 bits until the context ends is forgotten behind the
    step, so that many steps can share a context.

    Args:
        step: (self, x, target, optimizer, ...) -> anything. Tensors x and target that were made under
            `torch.inference_mode` come as copies, since autograd could not save them.

    Returns:
        The same method.

    Raises:
        TypeError: If x or target is no tensor.

    Example:
        >>> @learning
        ... def modes(self, x, target, optimizer):
        ...     return torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        >>> with torch.inference_mode():
        ...     modes(None, torch.ones(1), torch.ones(1), None)
        (False, False)
    """

    # One wrapper with as few calls as possible: each of them slows a small layer's step.
    @functools.wraps(step)
    def wrapped(self: Any, x: Tensor, target: Tensor, *rest: Any, **named: Any) -> Any:
        check_tensors(x, target)
        # torch.compile cannot ask for the mode, and traces as outside of it; it keeps no casts either.
        compiling = torch.compiler.is_compiling()
        if not compiling:
            if torch.is_inference_mode_enabled():
                with torch.inference_mode(False):
                    return wrapped(self, x, target, *rest, **named)
            if x.is_inference() or target.is_inference():
                x, target = recordable(x), recordable(target)
        if torch.is_grad_enabled():
            with torch.no_grad():
                result = step(self, x, target, *rest, **named)
        else:
            result = step(self, x, target, *rest, **named)
        if not compiling and autocast_is_on(x.device.type):
            torch.clear_autocast_cache()  # of weights in 16 bits, as they were before the step
        return result

    return wrapped  # type: ignore[return-value]


def not_held(parameter: Tensor) -> ValueError:
    """The error for a parameter that is to learn and is in no group of the optimizer."""
    return ValueError(
        f"the optimizer does not hold a parameter of shape {tuple(parameter.shape)}: build it "
        "from net.parameters() of the network that is trained, or freeze that layer"
    )


@contextlib.contextmanager
def rates_kept(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Put the learning rates back if the block ends by an exception, as of a batch that is refused."""
    before = [
        group["lr"].clone() if isinstance(group["lr"], Tensor) else group["lr"]
        for group in optimizer.param_groups
    ]
    try:
        yield
    except BaseException:
        for group, rate in zip(optimizer.param_groups, before, strict=True):
            if isinstance(rate, Tensor):
                group["lr"].copy_(rate)
            else:
                group["lr"] = rate
        raise


def set_rates(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Write a learning rate to all groups as torch's schedulers do: a rate that is a tensor is filled.

    Example:
        >>> optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=torch.tensor(0.5))
        >>> set_rates(optimizer, 0.25)
        >>> optimizer.param_groups[0]["lr"]
        tensor(0.2500)
    """
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def owns(layer: nn.Module, *names: str) -> bool:
    """Whether these are the layer's own parameters (or None), which nothing computes and no hook watches.

    Pruning and reparametrisations such as weight norm put a computed tensor in a parameter's place, which
    an update in place would not reach; a fused op has no gradient that a hook could change.

    Args:
        layer: Any module.
        *names: Of its parameters.
    """
    own = layer._parameters
    if not own.keys() >= set(names):
        return False
    return not any(p is not None and p._backward_hooks for p in map(own.__getitem__, names))


@functools.cache
def _refusal(kind: Any) -> str | None:
    """Why optimizers of a kind cannot make a local step, or None."""
    if issubclass(kind, torch.optim.SparseAdam):
        return "takes sparse gradients only"
    step = inspect.signature(kind.step).parameters
    closure = step.get("closure")
    if issubclass(kind, torch.optim.LBFGS) or (
        closure is not None and closure.default is inspect.Parameter.empty
    ):
        return "calls the loss again and again"
    return None


def check_step(layers: Iterable[nn.Module], optimizer: torch.optim.Optimizer) -> None:
    """Refuse, before any parameter moves, an optimizer that could not update one of the layers.

    Args:
        layers: All that the step is to train.
        optimizer: What it was given.

    Raises:
        ValueError: If the optimizer does not hold a parameter that is to learn, such a parameter was made
            under `torch.inference_mode` or is another layer's, too, no step on given gradients is
            possible with it, or a rate of `LocalSGD` or `LocalAdam` is none.
        TypeError: If it is no optimizer.
    """
    if isinstance(optimizer, FusedOptimizer):
        optimizer.check_rates()
    else:
        _check_kind(optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for parameter in unshared(layers):
        if id(parameter) not in held:
            raise not_held(parameter)
        if made_in_inference(parameter):
            raise _not_updatable(parameter)


def unshared(layers: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The parameters that are to learn.

    Raises:
        ValueError: If one is of two layers, which learn apart.
    """
    found: list[nn.Parameter] = []
    seen: set[int] = set()
    for layer in layers:
        # Walking through submodules takes long; a linear layer has none.
        own = layer.parameters() if layer._modules else layer._parameters.values()
        for parameter in own:
            if parameter is None or not parameter.requires_grad:
                continue
            if id(parameter) in seen:
                raise ValueError(
                    f"two layers share a parameter of shape {tuple(parameter.shape)}: what learns apart "
                    "cannot share one, give each its own"
                )
            seen.add(id(parameter))
            found.append(parameter)
    return found


def _check_kind(optimizer: torch.optim.Optimizer) -> None:
    kind: Any = type(optimizer)
    if not hasattr(kind, "step") or not hasattr(optimizer, "param_groups"):
        raise TypeError(
            f"`optimizer` must be an optimizer of net.parameters(), got {kind.__name__}: give LocalSGD, "
            "LocalAdam or one of torch.optim"
        )
    reason = _refusal(kind)
    if reason is not None:
        raise ValueError(
            f"{kind.__name__} {reason}, so it cannot make a local step: use another optimizer, or train "
            "by net.local_losses(x, target)"
        )


def _not_updatable(parameter: Tensor) -> ValueError:
    return ValueError(
        f"a parameter of shape {tuple(parameter.shape)} was made under torch.inference_mode() and "
        "cannot learn: build, copy, move and load networks outside of it"
    )


def step_on(optimizer: torch.optim.Optimizer, gradients: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Let any torch optimizer step on these gradients alone; every `.grad` is as before afterwards.

    Torch's optimizers skip parameters without a gradient, so all others stay as they are: neither momentum
    nor weight decay moves them. The optimizer's step hooks are called by its own `step`.

    Args:
        optimizer: Holds the parameters.
        gradients: Pairs of a parameter and its gradient; frozen parameters (requires_grad False) stay.

    Raises:
        ValueError: If a parameter was made under `torch.inference_mode`.

    Example:
        >>> ours, other = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
        >>> other.grad = torch.ones(1)
        >>> step_on(torch.optim.SGD([ours, other], lr=0.5), [(ours, torch.ones(1))])
        >>> ours.item(), ours.grad, other.item(), other.grad
        (0.5, None, 1.0, tensor([1.]))
    """
    given = [(parameter, gradient) for parameter, gradient in gradients if parameter.requires_grad]
    for parameter, _ in given:
        if made_in_inference(parameter):
            raise _not_updatable(parameter)
    pending = [
        (parameter, parameter.grad)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    for parameter, _ in pending:
        parameter.grad = None
    try:
        for parameter, gradient in apart(given):
            parameter.grad = _laid_out_like(parameter, gradient)
        optimizer.step()
    finally:
        for parameter, _ in given:
            parameter.grad = None
        for parameter, kept in pending:
            parameter.grad = kept


def scaled_back(
    given: Iterable[tuple[_Key, Tensor]], scale: float
) -> Iterator[tuple[_Key, Tensor]]:
    """Named gradients over the scale that was on their way down; as they are where it is 1.

    Example:
        >>> dict(scaled_back([("w", torch.tensor([6.0]))], 2.0))
        {'w': tensor([3.])}
    """
    for key, gradient in given:
        yield key, gradient if scale == 1 else gradient / scale


def apart(given: Iterable[tuple[_Key, Tensor]]) -> Iterator[tuple[_Key, Tensor]]:
    """Named tensors none of which shares memory with another, as gradients of w and v in x (w + v)^T do.

    Some of torch's optimizers write into gradients, and so does a sum over processes.

    Example:
        >>> whole = torch.zeros(2, 3)
        >>> apart = dict(apart([("w", whole), ("v", whole)]))
        >>> apart["w"] is whole, apart["v"] is whole
        (True, False)
    """
    seen: set[int] = set()
    compiling = torch.compiler.is_compiling()  # nothing has an address there
    for key, tensor in given:
        if tensor.is_sparse:  # as of an embedding that asks for it: nothing else has its memory
            yield key, tensor
            continue
        memory = id(tensor) if compiling else tensor.untyped_storage()._cdata
        yield key, tensor.clone() if memory in seen else tensor
        seen.add(memory)


def _laid_out_like(parameter: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in the parameter's own dtype and strides: torch's fused optimizers walk both side by side.

    Under autocast, gradients in closed form come in 16 bits.
    """
    if gradient.is_sparse:
        return gradient
    if gradient.stride() == parameter.stride() and gradient.dtype == parameter.dtype:
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def step_by_gradient(
    layer: LocalLayer, x: Tensor, target: Tensor, optimizer: torch.optim.Optimizer
) -> tuple[Tensor, Tensor]:
    """The unfused local step: the layer's gradients, then `optimizer.step()` on them alone.

    Args:
        layer: The layer to train; a frozen one only runs forward.
        x: Its input.
        target: (B,) int64 labels.
        optimizer: Any torch optimizer that holds the layer's parameters.

    Returns:
        loss () and the layer output, both from before the update.

    Raises:
        ValueError: As `check_step`, or if no gradient reaches a parameter that is to learn.
    """
    trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    if not trained:
        return layer.local_loss(x, target)
    check_step([layer], optimizer)
    if isinstance(optimizer, FusedOptimizer):
        optimizer.check_remembered(trained)
    with torch.enable_grad():
        loss, y = layer.local_loss(x, target)
    found: Sequence[Tensor | None] = [None] * len(trained)
    if loss.requires_grad:
        found = torch.autograd.grad(loss, trained, allow_unused=True)
    given = [(p, g) for p, g in zip(trained, found, strict=True) if g is not None]
    if not given:
        raise ValueError(
            f"no gradient reaches the parameters of {type(layer).__name__}, so it would not learn: "
            "something computes its weight from them without a graph, or torch.func transforms the step; "
            "freeze the layer if that is meant"
        )
    step_on(optimizer, given)
    return loss.detach(), y


def has_step_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """Whether torch calls anything around the optimizer's `step`: hooks of its own, or of all optimizers.

    Example:
        >>> sgd = torch.optim.SGD([torch.ones(1)])
        >>> handle = sgd.register_step_post_hook(print)
        >>> has_step_hooks(sgd)
        True
    """
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
    )
