"""StreamingClassifier: a SPELA network that learns one sample at a time and meets new classes on the way."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from spela.data import as_tensor, check_scale, prepare
from spela.data.dataset import check_values
from spela.early_exit import ExitPolicy
from spela.layers import LocalLayer, SpelaBlock
from spela.layers.in_training import awake_parts
from spela.network import SpelaSequential
from spela.optim import LocalAdam
from spela.process import seeded
from spela.streaming.checkpoint import FileState, Stream, file_state, read_stream, write_stream
from spela.streaming.classes import ClassTable, Label
from spela.streaming.replay import ReplayBuffer
from spela_kernels.precision import without_inference

__all__ = ["StreamPrediction", "StreamingClassifier"]


class StreamPrediction(NamedTuple):
    """Answers by name, and how sure and how early they were."""

    labels: list[Label]  # (B,)
    margin: Tensor  # (B,) score of the best class minus that of the second: the confidence
    layer: Tensor  # (B,) int64, index of the SPELA layer that answered, from 0


class StreamingClassifier:
    """Learns from a stream by local steps on each new mini-batch joined with remembered samples.

    The network is built for the largest number of classes there may ever be (its num_classes, or
    `max_classes` of a trained one); the classifier shows its layers only those met so far. All randomness
    (what is remembered, what is replayed, dropout) comes from one seed and is saved with the rest, so a
    stream that goes on after `load` ends in the same bits as one that never stopped.

    Args:
        net: The network; it is taken over and changed in place.
        optimizer: Built from net.parameters(), perhaps in groups (`spela.optim.layer_groups`); None:
            LocalAdam with lr 1e-3.
        memory: Most samples to remember, in the dtype they come in; 0: none.
        replay: Most remembered samples that each step joins to the new ones.
        policy: Which samples to remember: balanced (over classes) or reservoir (over the stream).
        labels: Labels of a network that was trained before, in the order of its class indices.
        max_classes: Most classes there may ever be; None: the network's num_classes. With more, layers
            get vectors for further classes at right angles to those they have, whose answers stay.
        seed: Of all randomness.

    Raises:
        ValueError: If layers differ in their classes or have no room for further ones, or a number or name is
            out of range.
        TypeError: If a layer cannot take classes at run time, or a number is not whole.

    Example:
        >>> from spela.layers import SpelaLinear
        >>> seed = torch.Generator().manual_seed(0)
        >>> layer = SpelaLinear(2, 16, num_classes=10, objective="softmax", generator=seed)
        >>> net = SpelaSequential(layer)
        >>> stream = StreamingClassifier(net)
        >>> _ = stream.observe(torch.tensor([1.0, 0.0]), "right")
        >>> _ = stream.observe(torch.tensor([[0.0, 1.0], [1.0, 0.1]]), ["up", "right"])
        >>> stream.labels
        ['right', 'up']
        >>> for _ in range(50):
        ...     _ = stream.observe(torch.tensor([[0.0, 1.0], [1.0, 0.1]]), ["up", "right"])
        >>> stream.predict(torch.tensor([[0.1, 1.0]])).labels
        ['up']
    """

    @without_inference
    def __init__(
        self,
        net: SpelaSequential,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        memory: int = 500,
        replay: int = 32,
        policy: str = "balanced",
        labels: Iterable[Label] = (),
        max_classes: int | None = None,
        seed: int = 0,
    ) -> None:
        replay = operator.index(replay)  # NumPy's integers too; a file keeps it
        if replay < 0:
            raise ValueError(f"`replay` must be 0 or more, got {replay}")
        if operator.index(memory) < 0:
            raise ValueError(f"`memory` must be 0 or more, got {memory}")
        self.generator = torch.Generator().manual_seed(operator.index(seed))
        self.buffer = ReplayBuffer(memory, policy, generator=self.generator)
        self.replay = replay
        self.optimizer = optimizer or LocalAdam(net.parameters(), lr=1e-3)
        self.net = net
        self.classes = ClassTable(net.local_layers, labels, max_classes, generator=self.generator)
        self._files: dict[Path, FileState] = {}  # as they were when this stream read or wrote them

    @property
    def labels(self) -> list[Label]:
        """The labels met so far, in the order of their class indices."""
        return list(self.classes.labels)

    @without_inference
    def observe(self, x: Tensor | np.ndarray, y: object) -> Tensor:
        """Learn from new samples; labels not met before become classes.

        Args:
            x: (B, ...) samples, or one sample without the batch axis; uint8 pixels or floats, alike
                over the whole stream, in a tensor or an array.
            y: B labels, each a str or an int; or one label, for one sample.

        Returns:
            (L,) losses of the step, on new and remembered samples, from before the update.

        Raises:
            ValueError: If numbers or shapes differ, a value is not finite in float32, there is one class
                too many, or the batch is one sample where a block compares samples. The classifier is then as
                it was; an error from inside a module of the network's own may leave earlier layers trained.
            TypeError: If samples are neither pixels nor floats, or a label neither str nor int; as above.
        """
        x, names = self._batch(x, y)
        before, state = len(self.classes), self.generator.get_state()
        target = torch.tensor(self.classes.indices(names), device=x.device)
        remembered = self.buffer.sample(min(self.replay, len(self.buffer)))
        inputs, targets = x, target
        if len(remembered[1]):
            inputs = torch.cat([x, remembered[0]])
            targets = torch.cat([target, remembered[1]])
        # Dropout draws from torch's own generator, which is the caller's: it gets it back as it was.
        seed = int(torch.randint(2**62, (), generator=self.generator, device="cpu"))
        with seeded(seed, x.device):
            self._train_mode()
            try:
                losses = self.net.local_step(self._input(inputs), targets, self.optimizer)
            except BaseException:  # Ctrl-C too
                self.classes.keep(before)
                self.generator.set_state(state)
                raise
        self.buffer.add(x, target)
        return losses

    def predict(
        self, x: Tensor | np.ndarray, exit_threshold: float | ExitPolicy | None = None
    ) -> StreamPrediction:
        """The labels of samples, with the confidence of each.

        Args:
            x: (B, ...) samples as for `observe`.
            exit_threshold: As for `SpelaSequential.predict`.

        Returns:
            A `StreamPrediction`; with one class known, margins are 0.

        Raises:
            ValueError: If no class is known yet, or samples are of another shape than those
                observed, or not finite.
            TypeError: If samples are neither pixels nor floats.
        """
        if not len(self.classes):
            raise ValueError("no class is known yet: observe a labelled sample first")
        x = as_tensor(x, "x").detach()
        if x.ndim > 1:  # else the network says that there is no batch axis
            self.buffer.check_shape(x)
            self._check_values(x)
            if len(self.buffer):
                check_scale(x, self.buffer.x.dtype, "`x`")
        self.net.eval()
        found = self.net.predict_detailed(self._input(x.to(self._device)), exit_threshold)
        names = [self.classes.labels[index] for index in found.labels.tolist()]
        return StreamPrediction(names, found.margin, found.layer)

    def freeze(self, layer: int, frozen: bool = True) -> None:
        """Stop a SPELA layer from learning, or let it learn again; it goes on passing samples through.

        Args:
            layer: Its index among the SPELA layers, from 0.
            frozen: False: let all of it learn, but what is in a `Frozen`.

        Raises:
            ValueError: If there is no such layer.
        """
        layers = self.net.local_layers
        if not 0 <= layer < len(layers):
            raise ValueError(f"`layer` must be in 0..{len(layers) - 1}, got {layer}")
        _let_learn(layers[layer], not frozen)

    def freeze_bodies(self, frozen: bool = True) -> None:
        """Let the heads of a network of `SpelaBlock` learn alone; bodies only pass samples through.

        Batch statistics of bodies stay, too. Other layers go on as they were.

        Args:
            frozen: False: let all of the bodies learn, but what is in a `Frozen`.

        Raises:
            ValueError: If there is no block, or one with nothing to learn in its head.
        """
        blocks = [layer for layer in self.net.local_layers if isinstance(layer, SpelaBlock)]
        if not blocks:
            raise ValueError("the network has no SpelaBlock: freeze its layers by freeze(index)")
        if frozen and not all(block.head_parameters() for block in blocks):
            raise ValueError(
                "a block's head has nothing to learn: build blocks with a projection or a hidden layer"
            )
        for block in blocks:
            _let_learn(block.body, not frozen)

    def save(self, path: str | Path) -> None:
        """Write everything the stream needs to go on: one safetensors file, whole or not at all.

        A hidden lock file beside it, which may be deleted, keeps savers apart.

        Args:
            path: The file to create or replace.

        Raises:
            ValueError: If this stream was loaded from the file, or saved to it, and another one has been
                saved there since: its learning would be lost.
            OSError: If the disk is full or the folder not writable.
        """
        file = Path(path).resolve()
        self._files[file] = write_stream(
            file,
            Stream(
                labels=self.labels,
                memory=self.buffer.capacity,
                policy=self.buffer.policy,
                replay=self.replay,
                frozen=[_frozen(layer) for layer in self.net.local_layers],
                tables=self.classes.tables,
                buffer=self.buffer.state(),
                generator=self.generator.get_state(),
            ),
            self.net,
            self.optimizer,
            self._files.get(file),
        )

    @classmethod
    @without_inference
    def load(
        cls,
        path: str | Path,
        net: SpelaSequential,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> StreamingClassifier:
        """Take up a saved stream; nothing is unpickled.

        Args:
            path: A file that `save` wrote.
            net: A network built as the saved one was; its weights are replaced.
            optimizer: As the saved one's: its state is restored, learning rates are this one's.

        Returns:
            The classifier, which goes on as the saved one would have.

        Raises:
            ValueError: If the file is missing, damaged, or of another network; `net` is then as it was.
        """
        path = Path(path)
        found = file_state(path) if path.is_file() else None
        stream, load_weights = read_stream(path)
        layers = net.local_layers
        if len(stream.tables) != len(layers):
            raise ValueError(
                f"{path} holds {len(stream.tables)} SPELA layers, the network has {len(layers)}"
            )
        made = cls(net, optimizer, memory=stream.memory, replay=stream.replay, policy=stream.policy)
        own = made.classes.tables
        try:
            made._remember(stream, path)
            made.classes.load(stream.tables)
            made.classes.indices(stream.labels)
            load_weights(net, made.optimizer)
        except BaseException:
            made.classes.tables = own
            made.classes.let_go()
            raise
        for layer, frozen in zip(layers, stream.frozen, strict=True):
            for name, parameter in layer.named_parameters():
                parameter.requires_grad_(
                    not (frozen if isinstance(frozen, bool) else name in frozen)
                )
        if found is not None:
            made._files[path.resolve()] = found
        return made

    def _remember(self, stream: Stream, path: Path) -> None:
        """Samples and generator of a saved stream."""
        try:
            self.buffer.load_state(stream.buffer, self._device)
            self.generator.set_state(stream.generator)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        if len(self.buffer.seen) > len(stream.labels):
            raise ValueError(f"{path} is damaged: it remembers classes without a label")

    def _input(self, x: Tensor) -> Tensor:
        """A batch in the network's dtype, pixels between 0 and 1."""
        return prepare(x).to(next(self.net.parameters()).dtype)

    @property
    def _device(self) -> torch.device:
        return next(self.net.parameters()).device

    def _batch(self, x: Tensor | np.ndarray, y: object) -> tuple[Tensor, Sequence[object]]:
        """Samples (B, ...) on the network's device, and B labels."""
        x = as_tensor(x, "x").detach()
        if isinstance(y, Tensor) or (hasattr(y, "tolist") and not isinstance(y, str | int)):
            y = y.tolist()
        single = isinstance(y, str | bytes) or not isinstance(y, Sequence)
        names: Sequence[object] = [y] if single else y  # type: ignore[assignment]
        if single:
            x = x[None]
        if len(names) == 0 or x.ndim < 2 or len(x) != len(names):
            raise ValueError(
                f"`x` and `y` must hold the same samples, at least one: got x {tuple(x.shape)} and "
                f"{len(names)} labels"
            )
        self.buffer.check(x)
        self._check_values(x)
        return x.to(self._device), names

    def _check_values(self, x: Tensor) -> None:
        seen = self._input(x)
        if not bool(torch.isfinite(seen).all()):
            dtype = str(seen.dtype).removeprefix("torch.")
            raise ValueError(
                f"`x` has values that are NaN, Inf or beyond {dtype}: leave such samples out"
            )
        if seen.numel() and seen.dtype != torch.float64:
            check_values(seen, "`x`")

    def _train_mode(self) -> None:
        self.net.train()
        for layer in self.net.local_layers:
            if _is_frozen(layer):
                layer.eval()  # batch statistics stay too
            for part in layer.children():
                _keep_frozen(part)


def _let_learn(module: nn.Module, learns: bool) -> None:
    for part in awake_parts(module):
        for parameter in part._parameters.values():
            if parameter is not None:
                parameter.requires_grad_(learns)


def _keep_frozen(module: nn.Module) -> None:
    """Eval mode for what has parameters and does not learn, as a block's body or a norm in it."""
    learns = [parameter.requires_grad for parameter in module.parameters()]
    if learns and not any(learns):
        module.eval()
        return
    for part in module.children():
        _keep_frozen(part)


def _frozen(layer: LocalLayer | nn.Module) -> bool | list[str]:
    """Whether a layer is frozen; the names of its frozen parameters where others learn."""
    names = [name for name, value in layer.named_parameters() if not value.requires_grad]
    return names if names and not _is_frozen(layer) else bool(names)


def _is_frozen(layer: LocalLayer | nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in layer.parameters())
