"""PEPITA: a second forward pass with the error added to the input tells every layer how to change."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from spela.baselines.hidden import Gradients, RivalSequential

__all__ = ["PepitaSequential"]


class PepitaSequential(RivalSequential):
    """Linear layers trained by the difference of two forward passes, the output one by its error.

    With h_l the activities of the pass on x, h'_l those of the pass on x' = x + e F^T, and
    e = softmax(output) - onehot(label):

        dW_l = (h_l - h'_l)^T h'_(l-1) / B for hidden layers,  dW_L = e'^T h'_(L-1) / B,

    e' the error of the second pass; db is the same without h'. The optimizer takes them as gradients.
    Dropout uses the same masks in both passes. No gradient flows between layers.

    What differs from the publication: optimizer and schedule are the caller's (SGD with momentum 0.9
    in the recipe, as published); more than one hidden layer, as in the tables here, is beyond most of
    its experiments. With a normalisation between hidden layers, as in the recipe, h_l is what the next
    layer receives: the normalised activity, so the change is that of normalised activities. Biases are
    trained by the same rule if the layers have them (published: none).

    Args:
        *modules: As nn.Sequential: nn.Linear layers, the last of them the output (B, C), and what
            stands between (activations, dropout, normalisation). Modules before the first linear
            layer see x alone.
        feedback_scale: Entries of F are U(+-feedback_scale * sqrt(6 / I)), I the first layer's inputs.
        generator: Source of F; None: torch's default one.

    Raises:
        ValueError: If the last module is no nn.Linear.

    Source: Dellaferrera and Kreiman, ICML 2022 (PMLR 162), Algorithm 1; the second pass's error at the
    output and the scale of F as in the authors' released code.

    Example:
        >>> net = PepitaSequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> net.local_step(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]), optimizer).shape
        torch.Size([1])
    """

    feedback: Tensor

    def __init__(
        self,
        *modules: nn.Module,
        feedback_scale: float = 0.05,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(*modules)
        if not modules or not isinstance(modules[-1], nn.Linear):
            raise ValueError("the last module must be nn.Linear: its outputs are the logits")
        first = next(module for module in modules if isinstance(module, nn.Linear))
        self.num_classes = modules[-1].out_features
        self.feedback_scale = feedback_scale
        draw = first.weight.detach().new_empty(first.in_features, modules[-1].out_features)
        self.register_buffer("feedback", draw)
        self._initialise(generator)

    def _initialise(self, generator: torch.Generator | None) -> None:
        bound = self.feedback_scale * math.sqrt(6 / len(self.feedback))
        self.feedback.uniform_(-bound, bound, generator=generator)

    def reset_parameters(self) -> None:
        """Draw the feedback matrix anew from torch's default generator; layers have methods of their own."""
        self._initialise(None)

    def layer_scores(self, x: Tensor) -> list[Tensor]:
        """The logits: only the output layer answers."""
        return [self(x)]

    def _first(self) -> int:
        return next(i for i, module in enumerate(self) if isinstance(module, nn.Linear))

    def _masks(self, x: Tensor) -> Iterator[tuple[nn.Module, Tensor | None]]:
        """Modules from the first linear layer on, with this step's mask for those that drop out."""
        width = x.shape[1]
        for module in list(self)[self._first() :]:
            mask = None
            if isinstance(module, nn.Linear):
                width = module.out_features
            elif isinstance(module, nn.Dropout):
                mask = module(x.new_ones(len(x), width))
            yield module, mask

    @torch.no_grad()
    def local_gradients(self, x: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Gradients]]:
        """The loss () of the first pass and all layers' changes, as one item."""
        for module in list(self)[: self._first()]:
            x = module(x)
        plan = list(self._masks(x))
        clean, logits = _run(plan, x)
        modulated, second = _run(plan, x + _error(logits, target) @ self.feedback.T)
        layers = [module for module, _ in plan if isinstance(module, nn.Linear)]
        found: Gradients = []
        for index, layer in enumerate(layers):
            if layer is layers[-1]:
                change = _error(second, target)
            else:  # what the next layer receives is this one's activity, dropout included
                change = clean[index + 1] - modulated[index + 1]
            change = change / len(target)
            found.append((layer.weight, change.T @ modulated[index]))
            if layer.bias is not None:
                found.append((layer.bias, change.sum(dim=0)))
        yield nn.functional.cross_entropy(logits, target), found


def _run(plan: list[tuple[nn.Module, Tensor | None]], x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Inputs of every linear layer, and the logits."""
    inputs = []
    for module, mask in plan:
        if isinstance(module, nn.Linear):
            inputs.append(x)
        x = module(x) if mask is None else x * mask
    return inputs, x


def _error(logits: Tensor, target: Tensor) -> Tensor:
    return logits.softmax(dim=1) - nn.functional.one_hot(target, logits.shape[1]).to(logits.dtype)
