"""Classes that come one after the other, on layers whose vectors for all of them were made at the start.

Classes are numbered in the order in which they come, so those known are always the first ones. A layer is
shown the first k rows of its vectors and nothing else: predictions and all-class objectives then leave the
classes to come out, without a mask, and every part of the library sees an ordinary network of k classes.
The vectors of a simplex keep the same pairwise cosine whichever of them are in use.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch import Tensor

from spela.layers import LocalLayer, SpelaConv2d, SpelaLinear

__all__ = ["ClassTable", "Label", "as_label"]

Label = str | int


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

    Raises:
        ValueError: If layers differ in their classes, or labels repeat or are too many.
        TypeError: If a layer is of another kind, or a label neither str nor int.

    Example:
        >>> layer = SpelaLinear(4, 8, num_classes=5)
        >>> table = ClassTable([layer])
        >>> table.indices(["cat", "dog", "cat"]), layer.num_classes, tuple(layer.vectors.shape)
        ([0, 1, 0], 2, (2, 8))
    """

    def __init__(self, layers: Iterable[LocalLayer], labels: Iterable[Label] = ()) -> None:
        self._layers = list(layers)
        sizes = {layer.num_classes for layer in self._layers}
        if len(sizes) != 1:
            raise ValueError(
                f"the layers must be built for one number of classes, got {sorted(sizes)}"
            )
        (self.max_classes,) = sizes
        self.tables = [_whole_table(layer) for layer in self._layers]
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
                f"network was built for {self.max_classes}; build it with a larger num_classes"
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
        """Replace the vectors of all classes, as a checkpoint holds them.

        Raises:
            ValueError: If they have other shapes.
        """
        for old, new in zip(self.tables, tables, strict=True):
            if old.shape != new.shape or old.is_floating_point() != new.is_floating_point():
                raise ValueError(
                    f"class vectors of shape {tuple(new.shape)} do not fit the network's "
                    f"{tuple(old.shape)}"
                )
        self.tables = [new.to(old) for old, new in zip(self.tables, tables, strict=True)]
        self._show()

    def let_go(self) -> None:
        """Show the layers all classes, as before the table took them."""
        self._show(self.max_classes)

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
    if isinstance(layer, SpelaLinear):
        return torch.clone(layer.vectors)  # (C, O)
    raise TypeError(f"{type(layer).__name__} cannot take classes at run time: use SpelaLinear")
