"""SPELA: training neural networks without a backward pass.

Layers that learn on their own in one forward pass, drop in for torch's, and can each answer.
"""

from spela import optim
from spela.early_exit import ExitPolicy, Prediction, calibrate_thresholds, multiply_adds
from spela.grouping import class_grouping
from spela.layers import LocalLayer, RowNorm, SpelaConv2d, SpelaLinear
from spela.network import SpelaSequential
from spela.vectors import coulomb_energy, random_vectors, symmetric_vectors

__all__ = [
    "ExitPolicy",
    "LocalLayer",
    "Prediction",
    "RowNorm",
    "SpelaConv2d",
    "SpelaLinear",
    "SpelaSequential",
    "calibrate_thresholds",
    "class_grouping",
    "coulomb_energy",
    "multiply_adds",
    "optim",
    "random_vectors",
    "symmetric_vectors",
]

__version__ = "0.1.0"
