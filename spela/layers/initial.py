"""How a layer starts: values set into its parameters, parametrised ones too, and its class vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spela.vectors import check_vector_kind, check_vectors, placed_vectors

__all__ = ["hold_vectors", "place_vectors", "set_values"]


@torch.no_grad()
def set_values(layer: nn.Module, name: str, values: Tensor) -> None:
    """Let the parameter `name` of a layer have these values, rounded to its dtype.

    Args:
        layer: Any module.
        name: Of its parameter; a parametrization gets the values through its `right_inverse`.
        values: Of its shape.

    Raises:
        ValueError: If a hook computes it (pruning, torch.nn.utils.weight_norm), which would undo the values.

    Example:
        >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 1))
        >>> set_values(layer, "weight", torch.tensor([[3.0, 4.0]]))
        >>> layer.weight.tolist(), layer.parametrizations.weight.original0.item()
        ([[3.0, 4.0]], 5.0)
    """
    if parametrize.is_parametrized(layer, name):
        setattr(layer, name, values.to(getattr(layer, name)))
    elif name in layer._parameters:
        held: Any = layer.get_parameter(name)
        if hasattr(held, "device_mesh"):  # a DTensor, as FSDP makes them
            from torch.distributed.tensor import distribute_tensor

            values = distribute_tensor(values.to(held.device), held.device_mesh, held.placements)
        held.copy_(values)
    else:
        raise ValueError(
            f"the {name} of this {type(layer).__name__} is computed by a hook: remove it (torch.nn.utils) "
            "before reset_parameters"
        )


def hold_vectors(layer: nn.Module, source: str | Tensor, vectors: Tensor) -> None:
    """Give a layer its buffer of class vectors, still empty, and the source that it is filled from.

    Args:
        layer: Gets `vectors` and, for each `reset_parameters`, `_vector_source`: a copy of a tensor.
        source: A kind's name, or the user's own vectors.
        vectors: Of the shape, dtype and device that the layer wants.

    Raises:
        TypeError: If a user's vectors are no tensor of floats.
        ValueError: If their shape differs.

    Example:
        >>> layer = nn.Module()
        >>> hold_vectors(layer, "symmetric", torch.empty(3, 2))
        >>> layer.vectors.shape
        torch.Size([3, 2])
    """
    if not isinstance(source, str):
        check_vectors(source, tuple(vectors.shape))
    layer._vector_source = source.detach().clone() if isinstance(source, Tensor) else source  # type: ignore[assignment]
    layer.register_buffer("vectors", vectors)


@torch.no_grad()
def place_vectors(layer: nn.Module, generator: torch.Generator | None) -> bool:
    """Fill a layer's buffer of class vectors (C, d) from its source.

    Args:
        layer: As `hold_vectors` left it.
        generator: CPU source of drawn vectors; None: torch's default one.

    Returns:
        False on the meta device, where nothing holds values: `to_empty`, then `reset_parameters`.

    Raises:
        ValueError: If the source is an unknown name, or a vector has no direction.
    """
    source: Any = layer._vector_source
    vectors: Any = layer.vectors
    check_vector_kind(source)
    if vectors.is_meta:
        return False
    vectors.copy_(placed_vectors(source, *vectors.shape, generator=generator))
    return True
