"""SPELA: training neural networks without a backward pass.

Layers that learn on their own in one forward pass, drop in for torch's, and can each answer.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    from spela import optim
    from spela.convert import convert
    from spela.early_exit import ExitPolicy, Prediction, calibrate_thresholds, multiply_adds
    from spela.graphed import GraphedStep
    from spela.layers import Frozen, LocalLayer, RowNorm, SpelaBlock, SpelaConv2d, SpelaLinear
    from spela.network import SpelaSequential
    from spela.process import keep_freed_memory
    from spela.vectors import class_grouping, coulomb_energy, random_vectors, symmetric_vectors
except KeyboardInterrupt:
    # torch takes seconds to import, and neither `spela` nor `python -m spela` can answer Ctrl-C before this.
    if Path(sys.argv[0]).stem not in ("spela", "-m"):
        raise
    sys.stderr.write("stopped\n")
    raise SystemExit(130) from None

if TYPE_CHECKING:
    from spela.estimator import SpelaClassifier

__all__ = [
    "ExitPolicy",
    "Frozen",
    "GraphedStep",
    "LocalLayer",
    "Prediction",
    "RowNorm",
    "SpelaBlock",
    "SpelaClassifier",
    "SpelaConv2d",
    "SpelaLinear",
    "SpelaSequential",
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


def __getattr__(name: str) -> Any:
    # On first use, because importing scikit-learn takes half a second that PyTorch users need not wait.
    if name == "SpelaClassifier":
        from spela.estimator import SpelaClassifier

        return SpelaClassifier
    raise AttributeError(f"module 'spela' has no attribute {name!r}")
