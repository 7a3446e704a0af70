"""Classes that come one after the other, on layers whose vectors for all of them were made at the start.

Classes are numbered in the order in which they come, so those known are always the first ones. A layer is
shown the first k rows of its vectors and nothing else: predictions and all-class objectives then leave the
classes to come out, without a mask, and every part of the library sees an ordinary network of k classes.
The vectors of a simplex keep the same pairwise cosine whichever of them are in use. A trained network gets
vectors for further classes beside its own.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch import Tensor

from spela.layers import LocalLayer, SpelaBlock, SpelaConv2d, SpelaLinear
from spela.vectors import as_size, further_vectors

__all__ = ["ClassTable", "Label", "as_label"]

Label = str | int
"""What a stream calls its classes."""


def as_label(value: object) -> Label:
    """A label as it is kept: a str or an int, also out of numpy or a 0-d tensor.

    Raises:
        TypeError: If it is anything else, a bool included.

    Example:
        >>> as_label(torch.tensor(3)), as_label("cat")
        (3, 'cat')
    """
    if isinstance(value, str):
        return str(value)
    if not isinstance(value, bool) and "bool" not in str(getattr(value, "dtype", "")):
        try:
            return int(operator.index(value))  # type: ignore[arg-type]
        except TypeError:
            pass
    raise TypeError(f"a label must be a str or an int, got {value!r} ({type(value).__name__})")


class ClassTable:
    """The labels known so far, and the layers' view of them.

    Args:
        layers: SPELA layers, all built for the same largest number of classes.
        labels: Labels known from the start, in the order of their class indices.
        max_classes: Most classes there may ever be; None: those the layers were built for. Vectors of further
            classes are at right angles to those of the layers, which stay.
        generator: CPU source of further vectors; None: torch's default one.

    Raises:
        ValueError: If layers differ in their classes or have no room for further ones, or labels repeat or
            are too many.
        TypeError: If a layer is of another kind, or a label neither str nor int.

    Example:
        >>> layer = SpelaLinear(4, 8, num_classes=5)
        >>> table = ClassTable([layer])
        >>> table.indices(["cat", "dog", "cat"]), layer.num_classes, tuple(layer.vectors.shape)
        ([0, 1, 0], 2, (2, 8))
    """

    def __init__(
        self,
        layers: Iterable[LocalLayer],
        labels: Iterable[Label] = (),
        max_classes: int | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        self._layers = list(layers)
        sizes = {layer.num_classes for layer in self._layers}
        if len(sizes) != 1:
            raise ValueError(
                f"the layers must be built for one number of classes, got {sorted(sizes)}"
            )
        (self._built,) = sizes
        self.max_classes = self._built
        self.tables = [_whole_table(layer) for layer in self._layers]
        if max_classes is not None:
            self.max_classes = as_size("max_classes", max_classes, least=self._built)
            further = self.max_classes - self._built
            if further:
                self.tables = [_grown(table, further, generator) for table in self.tables]
        self.labels: list[Label] = []
        self._index: dict[Label, int] = {}
        given = [as_label(label) for label in labels]
        if len(set(given)) != len(given):
            raise ValueError("`labels` must not repeat")
        self.indices(given)
        self.keep(len(given))

    def __len__(self) -> int:
        """Classes known."""
        return len(self.labels)

    def indices(self, labels: Iterable[object]) -> list[int]:
        """Class indices of labels; labels not met before become classes.

        Args:
            labels: str or int each.

        Raises:
            ValueError: If there would be more classes than vectors; nothing has changed then.
            TypeError: If a label is neither str nor int.
        """
        names = [as_label(label) for label in labels]
        new = [name for name in dict.fromkeys(names) if name not in self._index]
        if len(self.labels) + len(new) > self.max_classes:
            raise ValueError(
                f"label {new[self.max_classes - len(self.labels)]!r} is one class too many: the "
                f"network was built for {self.max_classes}; build it with a larger num_classes, or go on "
                "with an empty memory: StreamingClassifier(stream.net, labels=stream.labels, max_classes=...)"
            )
        for name in new:
            self._index[name] = len(self.labels)
            self.labels.append(name)
        if new:
            self._show()
        return [self._index[name] for name in names]

    def keep(self, count: int) -> None:
        """Forget all classes but the first `count`."""
        self.labels = self.labels[:count]
        self._index = {name: index for index, name in enumerate(self.labels)}
        self._show()

    def load(self, tables: list[Tensor]) -> None:
        """Replace the vectors of all classes, as a checkpoint holds them: they may be more than the layers'.

        Raises:
            ValueError: If they have other shapes.
        """
        sizes = {_classes(table) for table in tables}
        for old, new in zip(self.tables, tables, strict=True):
            fits = len(sizes) == 1 and min(sizes) >= self._built
            if not fits or _of_a_class(old) != _of_a_class(new):
                raise ValueError(
                    f"class vectors of shape {tuple(new.shape)} do not fit the network's "
                    f"{tuple(old.shape)}"
                )
        (self.max_classes,) = sizes
        self.tables = [new.to(old) for old, new in zip(self.tables, tables, strict=True)]
        self._show()

    def let_go(self) -> None:
        """Show the layers all classes, as before the table took them."""
        self._show(self._built)

    def _show(self, count: int | None = None) -> None:
        count = len(self.labels) if count is None else count
        # Copies: tensors that share memory cannot be saved side by side.
        for layer, table in zip(self._layers, self.tables, strict=True):
            layer.num_classes = count
            if isinstance(layer, SpelaConv2d):
                layer.grouping = table[:, :count].to(layer.grouping, copy=True).contiguous()
            else:
                layer.vectors = table[:count].to(layer.vectors, copy=True)  # type: ignore[arg-type]


def _whole_table(layer: LocalLayer) -> Tensor:
    """What says, for each class, where the layer turns its samples: vectors, or each kernel's groups."""
    if isinstance(layer, SpelaConv2d):
        return torch.clone(layer.grouping)  # (K, C)
    if isinstance(layer, SpelaLinear | SpelaBlock) and layer.scores_are_cosines:
        return torch.clone(layer.vectors)  # (C, O) or (C, d)
    raise TypeError(
        f"{type(layer).__name__} cannot take classes at run time: use SpelaLinear, SpelaConv2d or SpelaBlock"
    )


def _classes(table: Tensor) -> int:
    return len(table) if table.is_floating_point() else table.shape[1]


def _of_a_class(table: Tensor) -> tuple[bool, int, tuple[int, ...]]:
    """Kind, axes and what each class has in a table."""
    is_vectors = table.is_floating_point()
    return is_vectors, table.dim(), tuple(table.shape[1:] if is_vectors else table.shape[:1])


def _grown(table: Tensor, further: int, generator: torch.Generator | None) -> Tensor:
    if not table.is_floating_point():
        raise ValueError(
            "convolution layers have groups for the classes they were built for alone: build the network "
            "with a larger num_classes"
        )
    return torch.cat([table, further_vectors(table, further, generator=generator)])
