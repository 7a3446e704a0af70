"""SpelaBlock: any module as a part of a network that learns by a loss of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spela.layers.checkpointing import run_checkpointed
from spela.layers.contract import FusedOptimizer
from spela.layers.head import Head
from spela.layers.hooks import call_with_hooks
from spela.layers.initial import hold_vectors, place_vectors, set_values
from spela.layers.modes import check_module, probing
from spela.layers.projected import ProjectedLayer
from spela.layers.readout import check_readable, other_batches
from spela.layers.similarity import Similarity, check_compared
from spela.layers.steps import learning, owns, scaled_back, step_by_gradient
from spela.vectors import as_size
from spela_kernels import projection_loss
from spela_kernels.contracts import check_scale
from spela_kernels.objectives import get_objective
from spela_kernels.precision import made_in_inference, recordable, without_inference

__all__ = ["SpelaBlock", "sample_dtype"]

_TABLES = (nn.Embedding, nn.EmbeddingBag)  # whose gradients may be sparse


class SpelaBlock(ProjectedLayer):
    """Any module, trained to turn what is read out of its output towards the vector of the sample's class.

    The gradient goes through the whole body and ends there: the next block gets the output without a graph,
    and what the body stored is freed before that block runs. A head sees the output (the last block's gives
    the network's answer, the others' are for training and early exits): maps averaged down to few numbers,
    tokens averaged, rows as they are; then, where there are such, a hidden layer and a projection, r P. One
    block around a whole network is trained by backprop.

    Args:
        body: Maps one tensor to one tensor: maps (B, C, H, W), tokens (B, T, E) or rows (B, F). It is not
            copied.
        num_classes: C, at least 2.
        sample_input: A batch of the body's input, in its dtype and on its device; sets the head's sizes.
        readout: Most numbers that are read out of maps, but at least one a channel.
        channels: Of a trainable convolution (3 x 3, batch norm, LeakyReLU) of maps, averaged down to at most
            8 x 8, before they are read out; 0: none.
        hidden: Outputs of a trainable layer (linear, batch norm, LeakyReLU) between what is read out and the
            projection; 0: none. Early blocks, whose features are far from the classes, gain by it.
        projection: d, outputs of the trainable projection; None: what is read out is itself turned.
        projection_std: Standard deviation of the projection at the start, > 0; the loss does not see its
            length, so it sets how fast it turns at a given learning rate.
        objective: log, cosine, angular, euclidean, mse, or softmax (over all classes).
        scale: Factor of the cosines in `softmax`; other objectives ignore it.
        similarity: Weight w in [0, 1) of a similarity loss, beside 1 - w of the objective's.
        dropout: Share of what the projection sees that training leaves out, in [0, 1).
        checkpoint: Whether the body runs a second time for its gradient instead of storing activations.
        vectors: symmetric, gaussian or uniform, or a (C, d) tensor of rows to normalise.
        generator: CPU source of class vectors and head; None: torch's default one.

    Shape:
        As the body's.

    Raises:
        TypeError: If the body is no module, or returns no float tensor.
        ValueError: If a size, share or name does not fit, the head reads one number alone, the body changes
            its input in place or does not keep the batch axis, or `vectors` has the wrong shape.

    Source: Nøkland and Eidnes 2019 for the similarity loss; the rest is this library's own.

    Example:
        >>> body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        >>> block = SpelaBlock(body, 10, torch.randn(2, 3, 8, 8))
        >>> y = block(torch.randn(5, 3, 8, 8))
        >>> y.shape, block.scores(y).shape
        (torch.Size([5, 16, 8, 8]), torch.Size([5, 10]))
    """

    projection: nn.Parameter | None
    similarity: Similarity | None
    vectors: Tensor
    _vector_source: str | Tensor

    @without_inference
    def __init__(
        self,
        body: nn.Module,
        num_classes: int,
        sample_input: Tensor,
        *,
        readout: int = 256,
        channels: int = 0,
        hidden: int = 0,
        projection: int | None = 128,
        projection_std: float = 0.1,
        objective: str = "softmax",
        scale: float = 20.0,
        similarity: float = 0.0,
        dropout: float = 0.0,
        checkpoint: bool = False,
        vectors: str | Tensor = "symmetric",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_module("body", body)
        if not isinstance(sample_input, Tensor):
            raise TypeError(f"`sample_input` must be a tensor, got {type(sample_input).__name__}")
        self.num_classes = as_size("num_classes", num_classes, least=2)
        self.readout = as_size("readout", readout)
        get_objective(objective)
        check_scale(scale)
        for name, value, fits, bounds in (
            ("projection_std", projection_std, 0 < projection_std < math.inf, "> 0"),
            ("similarity", similarity, 0 <= similarity < 1, "in [0, 1)"),
            ("dropout", dropout, 0 <= dropout < 1, "in [0, 1)"),
        ):
            if not fits:
                raise ValueError(f"`{name}` must be {bounds}, got {value}")
        self.objective = objective
        self.scale = scale
        self.projection_std = projection_std
        self.similarity_weight = similarity
        self.dropout = nn.Dropout(dropout)
        self.checkpoint = checkpoint
        y = _sample_output(body, sample_input)
        self.output_shape = y.shape[1:]
        # Of the body's input: whoever builds such a block anew needs a sample.
        self.sample_shape, self.sample_dtype = tuple(sample_input.shape[1:]), sample_input.dtype
        self.body = body
        # In the parameters' dtype: of a body that autocast runs, the output's is narrower.
        first = next((p for p in body.parameters() if p.is_floating_point()), y)
        factory: dict[str, Any] = {"device": y.device, "dtype": first.dtype}
        self.head = Head(
            self.output_shape,
            self.readout,
            as_size("channels", channels, least=0),
            as_size("hidden", hidden, least=0),
            **factory,
        )
        width = self.head.width
        if width < 2:  # a projection of one number keeps its direction, too
            raise ValueError(
                "the head reads one number a sample, and in one dimension no direction can turn: give it "
                "`hidden` outputs"
            )
        if projection is not None:
            width = as_size("projection", projection, least=2)
        start = torch.empty(1, self.head.width, width, **factory)
        own = None if projection is None else nn.Parameter(start)
        self.register_parameter("projection", own)
        self.similarity = None
        hold_vectors(self, vectors, torch.empty(self.num_classes, width, **factory))
        self._initialise_head(generator)
        if similarity > 0:
            self.similarity = Similarity(self.output_shape, generator=generator, **factory)

    @torch.no_grad()
    def _initialise_head(self, generator: torch.Generator | None) -> None:
        if not place_vectors(self, generator):
            return
        where = "cpu" if generator is None else generator.device
        self.head.reset_parameters(generator)
        if self.projection is not None:
            draw = torch.empty(self.projection.shape, dtype=torch.float32, device=where)
            set_values(
                self, "projection", draw.normal_(0.0, self.projection_std, generator=generator)
            )
        if self.similarity is not None:
            self.similarity.reset_parameters(generator)

    def reset_parameters(self) -> None:
        """Let every module of the body that knows how start anew, then draw class vectors and head.

        From torch's default generator, so that a block that was built on the meta device starts as any
        other once `to_empty` has given it memory.
        """
        for module in self.body.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
        self._initialise_head(None)

    def head_parameters(self) -> list[nn.Parameter]:
        """The parameters that only this block's loss needs: of its head and similarity loss."""
        body = {id(parameter) for parameter in self.body.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in body]

    def forward(self, x: Tensor) -> Tensor:
        """The body's output.

        Raises:
            TypeError: If the body cannot work with x, whose dtype is not its weights'.
            Exception: What the body raises of another input that does not fit it.
        """
        try:
            if self.checkpoint and torch.is_grad_enabled():
                return run_checkpointed(self.body, x)
            y: Tensor = self.body(x)
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            why = self._other_dtype(x, first)
            if not why:
                raise
            raise TypeError(
                f"the body ({type(self.body).__name__}) cannot work with `x` of {x.dtype}: {why} ({first})"
            ) from error
        return y

    def _other_dtype(self, x: Tensor, error: str) -> str:
        """What to do about an input in another dtype than the body's weights; empty where that is not it."""
        if not isinstance(x, Tensor):
            return ""
        if x.dtype == torch.uint8:
            return "convert pixels by x.float() / 255"
        weights = next((p for p in self.body.parameters() if p.is_floating_point()), None)
        if weights is None or weights.dtype == x.dtype or "type" not in error:
            return ""
        return f"its weights are {weights.dtype}, convert one"

    def head_input(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `spela_kernels.projection_forward` takes for outputs (B, ...) of this block: one kernel's map.

        Raises:
            ValueError: If y is not such an output.
        """
        return self.head.answer(y).to(self.vectors.dtype)[:, None], *self._projector()

    def _projector(self) -> tuple[Tensor, Tensor, Tensor]:
        """Projection (1, F, d), class vectors (1, C, d) and groups (1, C) of the op: one kernel."""
        vectors, classes = self.vectors, torch.arange(self.num_classes, device=self.vectors.device)
        projection: Tensor | None = self.projection
        if projection is None:
            size = vectors.shape[1]
            projection = torch.eye(size, dtype=vectors.dtype, device=vectors.device)[None]
        return projection, vectors[None], classes[None]

    @property
    def learns_from_one(self) -> bool:  # type: ignore[override]
        """Whether one sample is a batch: not for a similarity loss."""
        return self.similarity is None

    def check_batch(self, x: Tensor, target: Tensor) -> None:
        super().check_batch(x, target)
        if self.similarity is not None:
            check_compared(len(x))

    def _run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The body's output and what the head gets of it, with their graph."""
        counts = not x.is_inference()  # inference tensors have no version counter
        version = x._version if counts else 0
        y = check_readable(self.forward(x), type(self.body).__name__)
        if counts and x._version != version:
            raise _in_place(self.body)
        _check_rows(y, len(x))
        rows, own = self.dropout(self.head(y)), self.vectors.dtype
        # The op takes rows of 16 bits under float32, as autocast makes them.
        narrow = own == torch.float32 and rows.element_size() == 2
        return y, rows if narrow else rows.to(own)

    def local_loss(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Loss () differentiable in this block's parameters only, and the detached output.

        Args:
            x: The body's input; receives no gradient.
            target: (B,) int64 labels.

        Returns:
            loss (), y.

        Raises:
            ValueError: On a shape, device or label that does not fit, for a batch of one sample with a
                similarity loss, or if the body changes its input in place.
            TypeError: If x or target is no tensor, or the labels are not int64.
            Exception: What the body raises of an input that does not fit it.

        Example:
            >>> block = SpelaBlock(nn.Linear(4, 8), 3, torch.randn(2, 4))
            >>> loss, y = block.local_loss(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))
            >>> loss.backward()
            >>> block.body.weight.grad.shape
            torch.Size([8, 4])
        """
        self.check_batch(x, target)

        def run(x: Tensor) -> tuple[Tensor, Tensor]:
            loss, y = self.joint_loss(recordable(x).detach(), target)
            return loss, y.detach()

        return call_with_hooks(self, x, run)

    def joint_loss(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the output with their graphs, which reach into `x`: for training blocks end to end.

        Args:
            x: The body's input.
            target: (B,) int64 labels, which are not checked.

        Returns:
            loss (), y.
        """
        y, rows = self._run(x)
        loss = self._head_loss(rows, target)
        if self.similarity is not None:
            weight = self.similarity_weight
            loss = (1 - weight) * loss + weight * self.similarity(y, self.vectors[target])
        return loss, y

    def _head_loss(self, rows: Tensor, target: Tensor) -> Tensor:
        return projection_loss(rows[:, None], *self._projector(), target, **self._criterion())

    @learning
    def local_step(
        self, x: Tensor, target: Tensor, optimizer: torch.optim.Optimizer
    ) -> tuple[Tensor, Tensor]:
        """Forward and update in place, under `torch.no_grad` and `torch.inference_mode` too.

        No `.grad` is read or changed, and the optimizer's step hooks are called once: `spela.layers.steps`.
        Where the body's backward fails, as for lack of memory, the projection of a fused step has moved.

        Args:
            x: The body's input.
            target: (B,) int64 labels.
            optimizer: `LocalSGD` or `LocalAdam` (the head's loss, gradient and update in one op, unless it
                has no projection or a similarity loss), or any torch optimizer that holds this block's
                parameters. Frozen parameters stay.

        Returns:
            loss () and y, both from before the update.

        Raises:
            ValueError: As `local_loss`, or if the optimizer does not hold the parameters.
            TypeError: As `local_loss`, which names what else there is.
        """
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        projection = self.projection
        if (
            not isinstance(optimizer, FusedOptimizer)
            or not owns(self, "projection")
            or projection is None
            or not projection.requires_grad
            or self.similarity is not None
            # Found out before the projection moves, whether the optimizer takes them.
            or any(isinstance(m, _TABLES) and m.sparse for m in self.body.modules())
            # In 16 bits, the fused step's moments and gradients would be float32.
            or any(p.element_size() <= 2 or made_in_inference(p) for p in trained)
            or not all(optimizer.can_fuse([parameter]) for parameter in trained)
        ):
            return step_by_gradient(self, x, target, optimizer)
        self.check_batch(x, target)
        optimizer.check_remembered(trained)
        body = [parameter for parameter in trained if parameter is not projection]
        return call_with_hooks(
            self,
            x,
            lambda x: optimizer.between_hooks(self._fused_update, x, target, optimizer, body),
        )

    def _fused_update(
        self,
        x: Tensor,
        target: Tensor,
        optimizer: FusedOptimizer,
        body: list[nn.Parameter],
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            y, rows = self._run(x.detach())
        loss, drows, scale = self._step_projection(rows.detach()[:, None], target, optimizer)
        if rows.requires_grad:
            found = torch.autograd.grad(rows, body, drows[:, 0].to(rows.dtype), allow_unused=True)
            used = ((p, g) for p, g in zip(body, found, strict=True) if g is not None)
            optimizer.update(scaled_back(used, scale))
        return loss, y.detach()

    def extra_repr(self) -> str:
        """The head's sizes."""
        projection = None if self.projection is None else self.projection.shape[2]
        scale = f", scale={self.scale}" if self.objective == "softmax" else ""
        return (
            f"num_classes={self.num_classes}, readout={self.readout}, projection={projection}, "
            f"objective={self.objective}{scale}"
        )


def sample_dtype(net: nn.Module) -> torch.dtype:
    """What a network's samples are in: of a first block of tokens their integers, else as its parameters.

    Example:
        >>> tokens = torch.zeros(2, 5, dtype=torch.int64)
        >>> block = SpelaBlock(nn.Embedding(11, 6), 3, tokens)
        >>> sample_dtype(nn.Sequential(block)), sample_dtype(nn.Sequential(nn.Linear(2, 2)))
        (torch.int64, torch.float32)
    """
    first = next(net.children(), None)
    if isinstance(first, SpelaBlock) and not first.sample_dtype.is_floating_point:
        return first.sample_dtype
    return next(net.parameters(), torch.empty(0, device="cpu")).dtype


def _in_place(body: nn.Module) -> ValueError:
    return ValueError(
        f"the body ({type(body).__name__}) changes its input in place, which is another block's output: "
        "build its first module with inplace=False"
    )


@contextmanager
def _refusing_in_place(body: nn.Module, x: Tensor) -> Iterator[None]:
    """Inside, modules that work in place must not get x or a view of it; dropout writes in training alone."""

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        given = args[0] if args else None
        if (
            isinstance(given, Tensor)
            and given.untyped_storage()._cdata == x.untyped_storage()._cdata
        ):
            raise _in_place(body)

    modules = [module for module in body.modules() if getattr(module, "inplace", False)]
    handles = [module.register_forward_pre_hook(look) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _sample_output(body: nn.Module, sample: Tensor) -> Tensor:
    """What the body makes of a sample, in eval mode, so that no statistic moves."""
    x = sample.detach().clone()
    version = x._version
    with probing(body), _refusing_in_place(body, x):
        y = check_readable(body(x), f"`body` ({type(body).__name__})")
        if x._version != version:
            raise _in_place(body)
        _check_rows(y, len(x))
        other = other_batches(sample)[0]  # another axis may happen to be as long as the sample
        try:
            z = body(other)
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(
                f"`body` takes a batch of {len(x)}, but none of {len(other)}: {str(error).splitlines()[0]}"
            ) from error
        _check_rows(z, len(other))
    return y


def _check_rows(y: Tensor, samples: int) -> None:
    if len(y) != samples:
        raise ValueError(
            f"`body` makes {len(y)} rows of {samples} samples: it must keep the batch axis first"
        )
