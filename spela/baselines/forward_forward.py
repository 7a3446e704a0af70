"""Forward-Forward: every layer learns to be active for a sample with its label and quiet with a wrong one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from spela.baselines.hidden import (
    Gradients,
    HiddenLayer,
    RivalSequential,
    layer_sweep,
    weight_gradients,
)

__all__ = ["ForwardForwardLayer", "ForwardForwardSequential"]


class ForwardForwardLayer(HiddenLayer):
    """h = phi(x W^T + b) with goodness g = mean_j h_j^2, trained to put g above or below a threshold.

    The loss is the mean over positive and negative samples of softplus(-s k (g - threshold)), with s = 1
    for positive and -1 for negative ones, and k the sharpness.

    Args:
        in_features: I.
        out_features: O.
        threshold: Goodness at which a sample is as likely positive as negative.
        sharpness: k; k = O makes the goodness the sum of squares instead of their mean.
        **settings: As `HiddenLayer`.

    Shape:
        (B, I) -> (B, O).

    Source: Hinton 2022, arXiv 2212.13345, sections 2 and 3.

    Example:
        >>> layer = ForwardForwardLayer(4, 8)
        >>> layer.goodness(layer(torch.randn(5, 4))).shape
        torch.Size([5])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        threshold: float = 1.0,
        sharpness: float = 10.0,
        **settings: Any,
    ) -> None:
        super().__init__(in_features, out_features, **settings)
        self.threshold = threshold
        self.sharpness = sharpness

    def goodness(self, y: Tensor) -> Tensor:
        """Mean squared activity (B,) of outputs (B, O)."""
        return y.square().mean(dim=1)

    def local_gradients(self, x: Tensor, sign: Tensor) -> tuple[Tensor, Tensor, Gradients]:
        """Local loss (), output (B, O) and the gradients of weight and bias, by hand.

        Args:
            x: (B, I).
            sign: (B,) of 1 (positive) and -1 (negative samples).
        """
        y = self(x)
        logit = sign * self.sharpness * (self.goodness(y) - self.threshold)
        loss = nn.functional.softplus(-logit).mean()
        # d loss / d y = -sigmoid(-logit) sign k / B * 2 y / O
        factor = torch.sigmoid(-logit) * sign * (-2 * self.sharpness / y.numel())
        return loss, y, self.gradients(x, y, y * factor[:, None])


class ForwardForwardSequential(RivalSequential):
    """A stack of `ForwardForwardLayer`, all trained locally in one sweep; any module may stand between.

    The label is written over the first C values of the flattened input, one-hot. Positive samples
    carry their own label, negative ones a wrong label, drawn uniformly from torch's default generator.
    To predict, the network runs with every label; the label with the largest goodness, summed over all
    layers but the first, wins. A module must take the length out of every layer's input (`RowNorm`),
    or a layer could read its predecessor's goodness off it.

    What differs from the publication: wrong labels are drawn uniformly, not in proportion to
    a learnt softmax over neutral-label activities (hard negatives, which the publication reports to
    need a third of the epochs); no peer normalisation; the optimizer is the caller's; and threshold,
    sharpness and label_scale are constants found on Fashion-MNIST.

    Args:
        *modules: As nn.Sequential, `ForwardForwardLayer`s among them.
        num_classes: C, at least 2.
        label_scale: Value of the label's pixel; full scale of a pixel is 1 (published: 1, on MNIST).

    Raises:
        ValueError: If there is no such layer or only one class.

    Source: Hinton 2022, arXiv 2212.13345, section 3.3.

    Example:
        >>> from spela.layers import RowNorm
        >>> net = ForwardForwardSequential(RowNorm(), ForwardForwardLayer(8, 16), num_classes=3)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> net.local_step(torch.rand(5, 8), torch.tensor([0, 1, 2, 0, 1]), optimizer).shape
        torch.Size([1])
        >>> net(torch.rand(5, 8)).shape
        torch.Size([5, 3])
    """

    def __init__(self, *modules: nn.Module, num_classes: int, label_scale: float = 10.0) -> None:
        super().__init__(*modules)
        if not any(isinstance(module, ForwardForwardLayer) for module in modules):
            raise ValueError("Forward-Forward needs at least one ForwardForwardLayer")
        if num_classes < 2:
            raise ValueError(f"Forward-Forward needs wrong labels: num_classes is {num_classes}")
        self.num_classes = num_classes
        self.label_scale = label_scale

    def embed(self, x: Tensor, labels: Tensor) -> Tensor:
        """Copies of the inputs with the labels written into them.

        Args:
            x: (B, ...) inputs of more than C values each.
            labels: (B,) int64.

        Returns:
            (B, I) flattened.

        Raises:
            ValueError: If there is no room for the labels.
            TypeError: If x is not floating point.
        """
        if not x.is_floating_point():
            raise TypeError(f"`x` is {x.dtype}: convert it, pixels by x.float() / 255")
        x = x.flatten(1)
        if x.shape[1] <= self.num_classes:
            raise ValueError(
                f"Forward-Forward writes the label over the first {self.num_classes} of a sample's "
                f"values and it has only {x.shape[1]}: use another method"
            )
        label = nn.functional.one_hot(labels, self.num_classes).to(x.dtype) * self.label_scale
        return torch.cat([label, x[:, self.num_classes :]], dim=1)

    def layer_scores(self, x: Tensor) -> list[Tensor]:
        """The network's answer (B, C) if it ended after each of its layers, first to last.

        The first layer answers by its own goodness, a later one by the sum of the goodness of layers
        2 up to itself. All C labels run as one batch of C * B rows.
        """
        batch, classes = x.shape[0], self.num_classes  # len() would fix it in a trace
        labels = torch.arange(classes, device=x.device).repeat_interleave(batch)
        h = self.embed(x.flatten(1).repeat(classes, 1), labels)  # (C * B, I)
        scores: list[Tensor] = []
        for module in self:
            h = module(h)
            if isinstance(module, ForwardForwardLayer):
                goodness = module.goodness(h).view(classes, batch).T
                scores.append(goodness + scores[-1] if len(scores) > 1 else goodness)
        return scores

    def forward(self, x: Tensor) -> Tensor:
        """Goodness (B, C) of every label, summed over all layers but the first (if there are more)."""
        return self.layer_scores(x)[-1]

    def wrong_labels(self, target: Tensor) -> Tensor:
        """Labels (B,) other than the targets, uniformly drawn from torch's default generator."""
        shift = torch.randint(1, self.num_classes, target.shape, device=target.device)
        return (target + shift) % self.num_classes

    @torch.no_grad()
    def local_gradients(
        self, x: Tensor, target: Tensor, wrong: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Gradients]]:
        """Loss () and gradients, layer by layer; the next layer's input is from before any update.

        Args:
            x: A batch of inputs.
            target: (B,) int64 labels.
            wrong: (B,) labels of the negative samples; None: drawn.
        """
        wrong = self.wrong_labels(target) if wrong is None else wrong
        h = torch.cat([self.embed(x, target), self.embed(x, wrong)])  # (2 B, I)
        sign = torch.ones(len(h), dtype=h.dtype, device=h.device)
        sign[len(target) :] = -1
        yield from layer_sweep(self, ForwardForwardLayer, h, sign)

    def probe_gradients(self, x: Tensor, target: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Loss (), weight and local gradient of every layer, for diagnostics; nothing is drawn."""
        return weight_gradients(
            self, self.local_gradients(x, target, (target + 1) % self.num_classes)
        )
