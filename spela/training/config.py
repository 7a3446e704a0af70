"""What a run is: every setting that decides its result, as one frozen, checked, JSON-able record."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from spela_kernels import ACTIVATIONS, OBJECTIVES

__all__ = ["RunConfig"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "method": ("spela", "backprop"),
    "objective": tuple(OBJECTIVES),
    "activation": tuple(ACTIVATIONS),
    "optimizer": ("sgd", "adam", "adamw"),
    "schedule": ("constant", "cosine", "drop"),
    "normalize_input": ("none", "unit", "rms"),
    "vectors": ("symmetric", "gaussian", "uniform"),
}


@dataclass(frozen=True)
class RunConfig:
    """The settings of one training run.

    Attributes:
        data: Name of a dataset, or path of a file or folder of one's own.
        recipe: Name of the preset the other values came from.
        method: spela, or backprop (the baseline: hidden layers as given plus an output layer).
        layers: Output sizes of the layers.
        epochs: Passes over the training data.
        seed: Of class vectors, weights, shuffling and dropout.
        batch_size: Samples a step.
        shuffle: New order every epoch.
        objective: Local objective.
        scale: Factor of the cosines in `softmax`.
        activation: Of every layer.
        negative_slope: Slope of leaky_relu below zero.
        vectors: How class vectors are placed.
        normalize_input: Row norm before every layer: none, unit (1) or rms (sqrt(features)).
        dropout: Share of each hidden layer's inputs zeroed in training (not the network's input).
        optimizer: sgd, adam or adamw.
        lr: Initial learning rate per mean-sample loss.
        momentum: Of sgd.
        weight_decay: L2 penalty (decoupled for adamw).
        schedule: constant, cosine (to zero, by step) or drop (lr_drop less every 10 epochs).
        lr_drop: What `drop` subtracts, in units of lr.
    """

    data: str
    recipe: str
    method: str
    layers: tuple[int, ...]
    epochs: int
    seed: int
    batch_size: int
    shuffle: bool
    objective: str
    scale: float
    activation: str
    negative_slope: float
    vectors: str
    normalize_input: str
    dropout: float
    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    schedule: str
    lr_drop: float

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"unknown {name} {getattr(self, name)!r}: use one of {', '.join(choices)}"
                )
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers or not all(isinstance(n, int) and n >= 1 for n in self.layers):
            raise ValueError(f"layers must be positive sizes such as 1024,1024, got {self.layers}")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in 0..2^63-1, got {self.seed}")
        for name in ("lr", "scale"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")
        for name in ("momentum", "weight_decay", "lr_drop", "negative_slope"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "layers": list(self.layers)}

    @classmethod
    def from_dict(cls, values: object) -> RunConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: If a setting is missing, unknown, of the wrong type or out of range.
        """
        if not isinstance(values, dict):
            raise ValueError("a run's config must be a JSON object")
        kinds = {"int": int, "float": (int, float), "str": str, "bool": bool}
        known = {field.name: str(field.type) for field in fields(cls)}
        if set(values) != set(known):
            wrong = ", ".join(sorted(map(str, set(values) ^ set(known))))
            raise ValueError(f"a run's config has missing or unknown settings: {wrong}")
        for name, kind in known.items():
            expected = kinds.get(kind, list)
            if not isinstance(values[name], expected) or (  # type: ignore[arg-type]
                kind != "bool" and isinstance(values[name], bool)
            ):
                raise ValueError(f"a run's config holds {name}={values[name]!r}: expected {kind}")
        return cls(**values)
