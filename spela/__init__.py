"""SPELA: training neural networks without a backward pass.

Layers that learn on their own in one forward pass, drop in for torch's, and can each answer.
"""

from spela import optim
from spela.convert import convert
from spela.grouping import class_grouping
from spela.layers import Frozen, LocalLayer, RowNorm, SpelaConv2d, SpelaLinear
from spela.network import SpelaSequential
from spela.vectors import coulomb_energy, random_vectors, symmetric_vectors

__all__ = [
    "Frozen",
    "LocalLayer",
    "RowNorm",
    "SpelaConv2d",
    "SpelaLinear",
    "SpelaSequential",
    "class_grouping",
    "convert",
    "coulomb_energy",
    "optim",
    "random_vectors",
    "symmetric_vectors",
]

__version__ = "0.1.0"
