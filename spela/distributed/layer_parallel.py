"""Layer-parallel SPELA: the layers are spread over the processes and batches flow through them.

A layer learns from its own input and passes its output on; nothing comes back. So while one stage works on
a batch, the stage before it works on the next: no bubble, no stale weights, no stored activations. Every
layer sees the batches in one process's order and computes what it computes there: the same bits.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import reduce
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from spela.distributed.pipe import Inlet, Outlet
from spela.distributed.ranks import Ranks
from spela.distributed.stages import stage_of_modules, trace
from spela.distributed.wrapped import refuse_hooks
from spela.layers import LocalLayer
from spela.layers.hooks import hooked_input
from spela.layers.in_training import drawing_parts
from spela.layers.modes import output_of
from spela.layers.plain import parts_of
from spela.layers.steps import check_step, learning
from spela.network import SpelaSequential, check_least
from spela.vectors import as_size
from spela_kernels.contracts import check_labels, check_target

__all__ = ["LayerParallelSequential"]


class LayerParallelSequential(SpelaSequential):
    """A SpelaSequential of which every process holds one stage; the others are on torch's meta device.

    Names, order and requires_grad are those of the whole network everywhere. It steps by `local_step`, whose
    losses of layers elsewhere are zeros until they are summed over the processes, and answers by
    `layer_scores`, `predict` and a call, which all processes make together. Several steps a call,
    `local_losses` and early exit need all layers in one process.

    Args:
        net: The whole network, on the CPU, made from the same seed on every process; taken over.
        ranks: The processes of the job, at most as many as SPELA layers.
        sample_shape: Shape of one input.
        in_flight: Batches that may be on their way between two stages.

    Shape:
        As SpelaSequential; inputs matter on rank 0 only, elsewhere their number must be right.

    Raises:
        ValueError: If there are more processes than SPELA layers, a module is needed by two processes, or the
            network has hooks of its own, which this one would not have.

    Source: TMLR 2025, Algorithm 1, has no update locking; Huang et al., "GPipe", NeurIPS 2019, for
    stages of contiguous layers.

    Example:
        >>> from spela.layers import SpelaLinear
        >>> alone = Ranks(0, 1, torch.device("cpu"), 60.0)
        >>> net = LayerParallelSequential(SpelaSequential(SpelaLinear(4, 16, 3)), alone, (4,))
        >>> net.stages
        [0]
    """

    def __init__(
        self,
        net: SpelaSequential,
        ranks: Ranks,
        sample_shape: tuple[int, ...],
        in_flight: int = 4,
    ) -> None:
        super().__init__(OrderedDict(parts_of(net)))
        refuse_hooks(net)
        self.ranks = ranks
        self._refuse_inner_draws()
        in_flight = as_size("in_flight", in_flight)
        traces = trace(net, sample_shape)
        self.stages = stage_of_modules(net, traces, ranks.size)
        self._refuse_tensors_in_two_stages()
        self._shapes = [t.shape for t in traces]
        first = self.stages.index(ranks.rank)
        dtype = next(net.parameters()).dtype
        self._inlet = None if first == 0 else Inlet(ranks, in_flight, self._shapes[first], dtype)
        self._outlet = None if ranks.rank == ranks.size - 1 else Outlet(ranks, in_flight, dtype)
        for module, stage in zip(self, self.stages, strict=True):
            module.to(ranks.device if stage == ranks.rank else "meta")

    def _refuse_inner_draws(self) -> None:
        """Refuse what `_skip` cannot draw for another process, whose generator would lag."""
        listed = [module for module in self if type(module) is nn.Dropout]
        drawing = [type(m).__name__ for m in drawing_parts(self) if m not in listed]
        if drawing and self.ranks.size > 1:
            raise ValueError(
                f"{drawing[0]} draws on one process alone, and the run would not be that of one process: "
                "train without it, or, of an nn.Dropout, with --parallel data"
            )

    def _refuse_tensors_in_two_stages(self) -> None:
        """Refuse what two processes would both need: each holds its own stage alone."""
        stages: dict[int, int] = {}
        for (name, module), stage in zip(parts_of(self).items(), self.stages, strict=True):
            for tensor in (*module.parameters(), *module.buffers()):
                if stages.setdefault(id(tensor), stage) != stage:
                    raise ValueError(
                        f"module {name} has tensors of a module that another process holds: give it its own, "
                        "or train with --parallel data"
                    )

    @property
    def own_parameters(self) -> list[nn.Parameter]:
        """The parameters that this process holds and trains."""
        return [p for p in self.parameters() if not p.is_meta]

    def expect(self, sizes: list[int]) -> None:
        """Say how many samples the next steps' batches have, so that they are received ahead.

        Args:
            sizes: Of the batches that `local_step` will be given, in order.
        """
        if self._inlet is not None:
            self._inlet.expect(sizes)

    def _received(self, x: Tensor) -> Tensor:
        return x if self._inlet is None else self._inlet.take(len(x))

    def _hooked(self, x: Tensor) -> Tensor:
        """The batch as the network's pre-hooks leave it, where its values matter."""
        return hooked_input(self, x) if self._inlet is None else x

    def local_steps(self, *_: Any, **__: Any) -> NoReturn:
        """Not in several processes: a ValueError."""
        raise ValueError("layers in several processes step by `local_step`, a batch a call")

    def local_losses(self, *_: Any, **__: Any) -> NoReturn:
        """Not in several processes: a ValueError."""
        raise ValueError("layers in several processes learn by `local_step`")

    def predict_detailed(self, *_: Any, **__: Any) -> NoReturn:
        """Not in several processes: a ValueError."""
        raise ValueError(
            "layers in several processes answer by `layer_scores`, or by `predict` without a threshold: "
            "for early exit, load the run in one process"
        )

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, C) of the last layer, on every process."""
        return self._scores_of(x)[-1]

    @learning
    def local_step(self, x: Tensor, target: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        """This process's part of one training step; its output goes to the next stage.

        Args:
            x: The batch of inputs; its values matter on rank 0 only.
            target: (B,) int64 labels, the same on every process.
            optimizer: Of `own_parameters`.

        Returns:
            (L,) losses from before the updates, zeros for layers of other processes.

        Raises:
            ValueError: On a shape, device or label that does not fit.
            LostRankError: If a neighbour is gone.
        """
        modules = list(self._checked())
        check_least(modules, len(x))
        x = self._hooked(x)
        # All stages have the labels: one that alone found a wrong one would leave the others waiting.
        check_target(target.new_empty(len(x)), target)  # of `x` only the length matters everywhere
        check_labels(target, self.local_layers[-1].num_classes)
        own = (m for m, stage in zip(self, self.stages, strict=True) if stage == self.ranks.rank)
        check_step((m for m in own if isinstance(m, LocalLayer)), optimizer)
        losses: list[Tensor] = []
        for index, (module, is_local) in enumerate(modules):
            if self.stages[index] != self.ranks.rank:
                self._skip(module, len(target), self._shapes[index])
                if is_local:
                    losses.append(torch.zeros((), device=target.device))
                continue
            if index == 0 or self.stages[index - 1] != self.ranks.rank:
                x = self._received(x)
            if is_local:
                loss, x = module.local_step(x, target, optimizer)  # type: ignore[operator]
                losses.append(loss)
            else:
                x = output_of(module, x)
        if self._outlet is not None:
            self._outlet.put(x)
        return torch.stack(losses)

    def _skip(self, module: nn.Module, count: int, shape: tuple[int, ...]) -> None:
        """Draw the mask that another process uses, so that the generator goes on as in one process."""
        if isinstance(module, nn.Dropout) and module.training:
            dtype = next(iter(self.own_parameters)).dtype
            nn.functional.dropout(
                torch.empty((count, *shape), dtype=dtype, device=self.ranks.device), module.p
            )

    @torch.no_grad()
    def layer_scores(self, x: Tensor) -> list[Tensor]:
        """Scores (B, C) of every SPELA layer, on every process; one batch passes all stages."""
        return self._scores_of(self._hooked(x))

    def _scores_of(self, x: Tensor) -> list[Tensor]:
        x = self._received(x)
        own: dict[int, Tensor] = {}
        layer = 0
        for index, (module, is_local) in enumerate(self._checked()):
            if self.stages[index] != self.ranks.rank:
                self._skip(module, len(x), self._shapes[index])
            else:
                x = output_of(module, x)
                if is_local:
                    own[layer] = module.scores(x)  # type: ignore[operator]
            layer += is_local
        if self._outlet is not None:
            self._outlet.put(x)
            self._outlet.flush()
        some = next(iter(own.values()))
        # In one dtype on all processes: of 16-bit layers some answer in float32, others in their own.
        wide = reduce(torch.promote_types, (p.dtype for p in self.parameters()), torch.float32)
        joint = some.new_zeros((layer, *some.shape), dtype=wide)
        for place, scores in own.items():
            joint[place] = scores
        return list(self.ranks.sum(joint))
