"""SPELA layers and the contract they share."""

from spela.layers.binary import BinaryWeight, with_binary_weight
from spela.layers.block import SpelaBlock
from spela.layers.contract import FusedOptimizer, LocalLayer
from spela.layers.conv import SpelaConv2d
from spela.layers.frozen import Frozen
from spela.layers.linear import SpelaLinear
from spela.layers.normalize import RowNorm, Standardize
from spela.layers.whitening import PatchWhitening

__all__ = [
    "BinaryWeight",
    "Frozen",
    "FusedOptimizer",
    "LocalLayer",
    "PatchWhitening",
    "RowNorm",
    "SpelaBlock",
    "SpelaConv2d",
    "SpelaLinear",
    "Standardize",
    "with_binary_weight",
]
