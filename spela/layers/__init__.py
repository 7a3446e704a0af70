"""SPELA layers and the contract they share."""

from spela.layers.contract import FusedOptimizer, LocalLayer
from spela.layers.conv import SpelaConv2d
from spela.layers.frozen import Frozen
from spela.layers.linear import SpelaLinear
from spela.layers.normalize import RowNorm

__all__ = ["Frozen", "FusedOptimizer", "LocalLayer", "RowNorm", "SpelaConv2d", "SpelaLinear"]
