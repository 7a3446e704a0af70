"""SPELA: training neural networks without a backward pass.

Layers that learn on their own in one forward pass, drop in for torch's, and can each answer.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spela import optim
    from spela.conversion import convert
    from spela.early_exit import ExitPolicy, Prediction, calibrate_thresholds, multiply_adds
    from spela.estimator import SpelaClassifier
    from spela.graphed import GraphedStep
    from spela.layers import (
        Frozen,
        LocalLayer,
        PatchWhitening,
        RowNorm,
        SpelaBlock,
        SpelaConv2d,
        SpelaLinear,
        Standardize,
    )
    from spela.network import SpelaSequential
    from spela.process import keep_freed_memory
    from spela.vectors import class_grouping, coulomb_energy, random_vectors, symmetric_vectors

__all__ = [
    "ExitPolicy",
    "Frozen",
    "GraphedStep",
    "LocalLayer",
    "PatchWhitening",
    "Prediction",
    "RowNorm",
    "SpelaBlock",
    "SpelaClassifier",
    "SpelaConv2d",
    "SpelaLinear",
    "SpelaSequential",
    "Standardize",
    "calibrate_thresholds",
    "class_grouping",
    "convert",
    "coulomb_energy",
    "keep_freed_memory",
    "multiply_adds",
    "optim",
    "random_vectors",
    "symmetric_vectors",
]

__version__ = "0.1.0"

# The modules that a name comes from are imported when it is first used: torch takes seconds, which
# `spela --help` need not wait, and scikit-learn half a second more, which PyTorch users need not.
_HOMES = {
    "conversion": ("convert",),
    "early_exit": ("ExitPolicy", "Prediction", "calibrate_thresholds", "multiply_adds"),
    "estimator": ("SpelaClassifier",),
    "graphed": ("GraphedStep",),
    "layers": (
        *("Frozen", "LocalLayer", "PatchWhitening", "RowNorm"),
        *("SpelaBlock", "SpelaConv2d", "SpelaLinear", "Standardize"),
    ),
    "network": ("SpelaSequential",),
    "optim": (),
    "process": ("keep_freed_memory",),
    "vectors": ("class_grouping", "coulomb_energy", "random_vectors", "symmetric_vectors"),
}

if not TYPE_CHECKING:  # a type checker sees the imports above, and so a mistyped name

    def __getattr__(name: str) -> Any:
        for home, names in _HOMES.items():
            if name == home:
                return import_module(f"spela.{home}")
            if name in names:
                value = getattr(import_module(f"spela.{home}"), name)
                globals()[name] = value  # the next use does not come here
                return value
        raise AttributeError(f"module 'spela' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_HOMES})
