"""SpelaSequential: a stack of local layers that learns in one forward pass and can answer at each layer."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from spela.early_exit import ExitPolicy, Prediction, exit_thresholds, margin_and_label
from spela.layers import Frozen, LocalLayer
from spela.layers.chain import chain_of, modules_ahead
from spela.layers.contract import FusedOptimizer
from spela.layers.hooks import hooked_input
from spela.layers.modes import output_of
from spela.layers.steps import check_step, learning, rates_kept, set_rates, unshared
from spela.pretrained import Pretrained
from spela_kernels.contracts import check_dense, check_labels, check_target, check_tensors
from spela_kernels.precision import recordable

__all__ = ["SpelaSequential", "check_least"]

_FLOAT32 = torch.finfo(torch.float32).max


def check_least(modules: list[tuple[nn.Module, bool]], samples: int) -> None:
    """Refuse, before any layer learns, one sample where a later layer compares the samples of a batch.

    Args:
        modules: Of a network, in order, and whether each is a SPELA layer.
        samples: Of the smallest batch.

    Raises:
        ValueError: If it is one, and a layer cannot learn from one.
    """
    if samples != 1:
        return
    for index, (module, is_local) in enumerate(modules):
        if is_local and not module.learns_from_one:
            raise ValueError(
                f"the similarity loss of module {index} compares samples: train on batches of at least 2"
            )


def _batch_sizes(samples: int, batch_size: int | Sequence[int]) -> list[int]:
    """Samples of every step; NumPy's and torch's integers, and arrays of them, do as well."""
    try:
        size = operator.index(batch_size)  # type: ignore[arg-type]
    except TypeError:
        return _sizes_given(samples, batch_size)  # type: ignore[arg-type]
    if size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {size}")
    full, rest = divmod(samples, size)
    return [size] * full + [rest] * (rest > 0 or full == 0)


def _sizes_given(samples: int, batch_sizes: Sequence[int]) -> list[int]:
    try:
        sizes = [operator.index(size) for size in batch_sizes]
    except TypeError:
        raise TypeError(
            f"`batch_size` must be an integer or a sequence of integers, got {batch_sizes!r}"
        ) from None
    wrong = [size for size in sizes if size < 1]
    if wrong or not sizes or sum(sizes) != samples:
        raise ValueError(
            f"`batch_size` must be numbers of at least 1, and {samples} together, the number of samples; got "
            + (str(wrong[0]) if wrong else f"{sum(sizes)} together")
        )
    return sizes


def _check_batch(x: Tensor) -> None:
    check_dense(x)
    if x.dim() < 2:
        raise ValueError(f"`x` must be a batch (B, ...), got shape {tuple(x.shape)}: use x[None]")


def _of_samples(scores: Tensor) -> Tensor:
    """Scores, of which there must be (B, C)."""
    if scores.dim() != 2:
        raise ValueError(
            f"a sample has one label, but its layers make scores of shape {tuple(scores.shape)}: flatten "
            "samples to rows, as by an nn.Flatten() in front, or answer by net(x).argmax(dim=-1)"
        )
    return scores


class SpelaSequential(Pretrained):
    """nn.Sequential whose SPELA layers learn locally; any module may stand in between.

    Modules between the layers (Flatten, Dropout, RowNorm, a frozen backbone) only transform: nothing
    is propagated back, so parameters of theirs are never trained. Forward pre-hooks of the network are
    called by every method that takes its input, forward hooks by `net(x)` alone.

    Args:
        *modules: As nn.Sequential; the last must be a SPELA layer for the network to classify.

    Shape:
        Input: what the first module takes. Output: scores (B, C) of the last layer.

    Source: TMLR 2025, Algorithm 1.

    Example:
        >>> from spela.layers import SpelaLinear
        >>> net = SpelaSequential(SpelaLinear(4, 16, 3), SpelaLinear(16, 16, 3))
        >>> net(torch.randn(5, 4)).shape
        torch.Size([5, 3])
        >>> [tuple(s.shape) for s in net.layer_scores(torch.randn(5, 4))]
        [(5, 3), (5, 3)]
    """

    @property
    def local_layers(self) -> list[LocalLayer]:
        """The SPELA layers, in order."""
        return [module for module in self if isinstance(module, LocalLayer)]

    def _checked(self) -> Iterator[tuple[nn.Module, bool]]:
        modules = list(self)
        if not modules or not isinstance(modules[-1], LocalLayer):
            last = type(modules[-1]).__name__ if modules else "nothing"
            raise ValueError(
                f"the last module must be a SPELA layer, got {last}: nothing would use it"
            )
        classes: int | None = None
        for module in modules:
            is_local = isinstance(module, LocalLayer)
            if is_local and module.num_classes != classes:
                if classes is not None:
                    raise ValueError(
                        f"layers of {classes} and of {module.num_classes} classes cannot learn from the same "
                        "labels: give all layers the same num_classes"
                    )
                classes = module.num_classes  # type: ignore[assignment]
            if not is_local and module._modules and not isinstance(module, Frozen):
                hidden = [type(m).__name__ for m in module.modules() if isinstance(m, LocalLayer)]
                if hidden:
                    raise ValueError(
                        f"{hidden[0]} is inside {type(module).__name__}, where it would not learn: list it "
                        "in the SpelaSequential itself"
                    )
            yield module, is_local

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, C) of the last layer: an ordinary classifier's logits, in [-1, 1]."""
        for module, _ in self._checked():
            x = output_of(module, x)
        return self.local_layers[-1].scores(x)

    def layer_scores(self, x: Tensor) -> list[Tensor]:
        """Scores (B, C) of every SPELA layer, first to last, in the mode that the network is in.

        Args:
            x: A batch of inputs.

        Returns:
            One (B, C) tensor of cosines a SPELA layer; empty for an empty batch.

        Raises:
            TypeError: If x is no tensor.
        """
        check_dense(x)
        return self._scores_of(hooked_input(self, x))

    def mean_scores(self, x: Tensor) -> Tensor:
        """Scores (B, C) of all SPELA layers together: the mean of theirs, from the same forward pass.

        They may be right more often than the last layer alone, or less often where the first ones are weak:
        `spela evaluate` prints both. `layer_scores` tells them apart. In the mode the network is in.

        Args:
            x: A batch of inputs.

        Returns:
            (B, C) in [-1, 1].

        Example:
            >>> from spela.layers import SpelaLinear
            >>> net = SpelaSequential(SpelaLinear(4, 16, 3), SpelaLinear(16, 16, 3))
            >>> net.mean_scores(torch.randn(5, 4)).argmax(dim=1).shape
            torch.Size([5])
        """
        return torch.stack(self.layer_scores(x)).mean(dim=0)

    def _scores_of(self, x: Tensor) -> list[Tensor]:
        """Scores of every SPELA layer, of an input that has been through the network's own hooks."""
        scores = []
        for module, is_local in self._checked():
            x = output_of(module, x)
            if is_local:
                scores.append(module.scores(x))  # type: ignore[operator]
        return scores

    def local_losses(self, x: Tensor, target: Tensor) -> Tensor:
        """Local losses (L,); `.sum().backward()` trains all layers under any torch optimizer.

        Args:
            x: A batch of inputs.
            target: (B,) int64 labels.

        Returns:
            (L,) one loss a SPELA layer, each differentiable in that layer's parameters only.

        Raises:
            ValueError: On a shape, device or label that does not fit, if two layers share a parameter, or
                one sample meets a similarity loss.
            TypeError: If one is no tensor, or dtypes do not fit.
        """
        check_tensors(x, target)
        _check_batch(x)
        modules, losses = list(self._checked()), []
        x = hooked_input(self, recordable(x))
        check_target(x, target)
        check_labels(target, modules[-1][0].num_classes)  # type: ignore[arg-type]
        unshared(self.local_layers)
        check_least(modules, len(x))
        for module, is_local in modules:
            if is_local:
                loss, x = module.local_loss(x, target)  # type: ignore[operator]
                losses.append(loss)
            else:
                with torch.no_grad():
                    x = output_of(module, x)
        return torch.stack(losses)

    @learning
    def local_step(self, x: Tensor, target: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        """One training step: each layer is updated right after its own forward.

        Nothing is stored for a backward pass, so it learns under `torch.no_grad` and `torch.inference_mode`
        too. Parameters of other modules stay, and so does every `.grad`; the optimizer's step hooks are
        called once for each layer that learns.

        Args:
            x: A batch of inputs.
            target: (B,) int64 labels.
            optimizer: `LocalSGD` or `LocalAdam` (fused), or any torch optimizer of net.parameters().

        Returns:
            (L,) losses from before the updates, on the network's device.

        Raises:
            ValueError: On a shape, device or label that does not fit, or if the optimizer cannot update one
                of the layers: before any of them is updated, but for what only a later layer can find in
                its own input or state.
            TypeError: On dtypes that do not fit, or if x or target is no tensor.

        Example:
            >>> from spela.layers import SpelaLinear
            >>> from spela.optim import LocalSGD
            >>> net = SpelaSequential(SpelaLinear(4, 16, 3))
            >>> optimizer = LocalSGD(net.parameters(), lr=0.1)
            >>> net.local_step(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]), optimizer).shape
            torch.Size([1])
        """
        _check_batch(x)
        modules, losses = list(self._checked()), []
        check_step([module for module, is_local in modules if is_local], optimizer)
        check_least(modules, len(x))
        x = hooked_input(self, x)
        done = self._chained(modules, x, target, optimizer, [len(x)], None)
        if done is not None:
            return done[0]
        # Before a norm or a dropout on the way to the layer that would find it.
        check_target(x, target)
        check_labels(target, modules[-1][0].num_classes)  # type: ignore[arg-type]
        for module, is_local in modules:
            if is_local:
                loss, x = module.local_step(x, target, optimizer)  # type: ignore[operator]
                losses.append(loss)
            else:
                x = output_of(module, x)
        return torch.stack(losses)

    @learning
    def local_steps(
        self,
        x: Tensor,
        target: Tensor,
        optimizer: torch.optim.Optimizer,
        batch_size: int | Sequence[int],
        rates: Sequence[float] | None = None,
    ) -> Tensor:
        """A training step on every batch of the samples, in order: the bits of `local_step` on each.

        Stacks of `SpelaLinear` layers (up to 1,024 x 1,024 at 128 samples), with `RowNorm` between, take all
        steps in one compiled call on the CPU, which cannot be interrupted: give it as many batches as take a
        tenth of a second or so.

        Args:
            x: (N, ...) inputs.
            target: (N,) int64 labels.
            optimizer: As in `local_step`.
            batch_size: Samples a step, the last batch may be smaller; or the samples of every step, which are
                N together (of several epochs, whose last batches are smaller).
            rates: Learning rate of every step, written to all parameter groups as a schedule would; None:
                the groups' own.

        Returns:
            (steps, L) losses from before the updates, on the network's device.

        Raises:
            ValueError: As `local_step`; or if a batch size is below 1, several are not N together, there is
                not one rate a step, or a rate is below 0.
            TypeError: As `local_step`.

        Example:
            >>> from spela.layers import SpelaLinear
            >>> from spela.optim import LocalAdam
            >>> net = SpelaSequential(SpelaLinear(4, 16, 3), SpelaLinear(16, 16, 3))
            >>> optimizer = LocalAdam(net.parameters(), lr=1e-3)
            >>> net.local_steps(torch.randn(10, 4), torch.arange(10) % 3, optimizer, batch_size=4).shape
            torch.Size([3, 2])
        """
        _check_batch(x)
        sizes = _batch_sizes(len(x), batch_size)
        if rates is not None:
            rates = [float(rate) for rate in rates]  # an array's and a tensor's, too
            if len(rates) != len(sizes):
                raise ValueError(f"{len(sizes)} steps need as many rates, got {len(rates)}")
            wrong = [rate for rate in rates if not 0 <= rate <= _FLOAT32]
            if wrong:
                raise ValueError(f"`rates` must be finite in float32 and >= 0, got {wrong[0]}")
        modules = list(self._checked())
        check_target(x, target)
        check_labels(target, self.local_layers[-1].num_classes)  # of all batches, before the first
        check_step([module for module, is_local in modules if is_local], optimizer)
        check_least(modules, min(sizes))
        if not self._forward_pre_hooks:
            done = self._chained(modules, x, target, optimizer, sizes, rates)
            if done is not None:
                return done
        losses = []
        for step, (batch, labels) in enumerate(
            zip(x.split(sizes), target.split(sizes), strict=True)
        ):
            with rates_kept(optimizer) if rates is not None else nullcontext():
                if rates is not None:
                    set_rates(optimizer, rates[step])
                losses.append(self.local_step(batch, labels, optimizer))
        return torch.stack(losses)

    def _chained(
        self,
        modules: list[tuple[nn.Module, bool]],
        x: Tensor,
        target: Tensor,
        optimizer: torch.optim.Optimizer,
        sizes: Sequence[int],
        rates: Sequence[float] | None,
    ) -> Tensor | None:
        """Losses (steps, L) of steps in one call; None where there is no such call for this network."""
        if torch.compiler.is_compiling() or not isinstance(optimizer, FusedOptimizer):
            return None
        # Before any module runs that the steps one by one would run again.
        if x.device.type != "cpu":
            return None
        stack = [module for module, _ in modules]
        ahead = modules_ahead(stack)
        if ahead is None:
            return None
        for module in stack[:ahead]:
            x = module(x)
        chain = chain_of(stack[ahead:], x, target)
        if chain is None:
            return None
        return optimizer.linear_steps(chain, x, target.contiguous(), sizes, rates)

    @torch.no_grad()
    def predict(self, x: Tensor, exit_threshold: float | ExitPolicy | None = None) -> Tensor:
        """Labels (B,) by the last layer, or by the first layer that is sure enough.

        In the mode the network is in, as `net(x)`: call `net.eval()` first, or dropout leaves numbers out and
        batch norms take and note the batch's statistics.

        Args:
            x: A batch of inputs.
            exit_threshold: Margin in score between the best and the second class from which a
                sample is answered at once and leaves the batch: one number for all layers, or an
                `ExitPolicy`. None: always the last layer.

        Returns:
            (B,) int64 labels.

        Raises:
            ValueError: If x is no batch, or a policy does not have one threshold for each SPELA layer but the
                last.
            TypeError: If x is no tensor, or the threshold neither a number nor a policy.

        Example:
            >>> from spela.layers import SpelaLinear
            >>> net = SpelaSequential(SpelaLinear(4, 16, 3), SpelaLinear(16, 16, 3))
            >>> x = torch.randn(5, 4)
            >>> bool((net.predict(x) == net(x).argmax(1)).all())
            True
        """
        _check_batch(x)
        if exit_threshold is None:
            return _of_samples(self(x)).argmax(dim=1)
        return self.predict_detailed(x, exit_threshold).labels

    @torch.no_grad()
    def predict_detailed(
        self, x: Tensor, exit_threshold: float | ExitPolicy | None = None
    ) -> Prediction:
        """As `predict`, with the margin of every answer and the layer that gave it.

        Args:
            x: A batch of inputs.
            exit_threshold: As for `predict`.

        Returns:
            A `Prediction`: labels (B,), margin (B,) and layer (B,), from 0.

        Raises:
            ValueError: As `predict`.
            TypeError: As `predict`.

        Source: TMLR 2025: every layer can classify, so inference may stop at any of them.

        Example:
            >>> from spela.layers import SpelaLinear
            >>> net = SpelaSequential(SpelaLinear(4, 16, 3), SpelaLinear(16, 16, 3))
            >>> net.predict_detailed(torch.randn(3, 4), exit_threshold=0.0).layer
            tensor([0, 0, 0])
        """
        _check_batch(x)
        modules = list(self._checked())
        layers = self.local_layers
        thresholds = exit_thresholds(exit_threshold, len(layers))
        x = hooked_input(self, x)
        count, index = len(x), 0
        answer: Prediction | None = None
        waiting: Tensor | None = None  # rows still in the batch; None: all
        for module, is_local in modules:
            x = output_of(module, x)
            if not is_local:
                continue
            threshold, layer = thresholds[index], index
            index += 1
            if threshold == math.inf:
                continue
            margin, label = margin_and_label(_of_samples(layers[layer].scores(x)))
            if answer is None:
                # Nobody has left yet, so this layer's answers are everybody's for now.
                answer = Prediction(label, margin, torch.full((count,), layer, device=x.device))
            else:
                answer.labels[waiting] = label
                answer.margin[waiting] = margin.to(answer.margin.dtype)
                answer.layer[waiting] = layer
            if layer == len(layers) - 1:
                break
            stays = (~(margin >= threshold)).nonzero()[:, 0]  # a NaN is never sure
            if len(stays) == 0:
                break
            x, waiting = x[stays], stays if waiting is None else waiting[stays]
        assert answer is not None  # the last layer's threshold is minus infinity
        return answer
