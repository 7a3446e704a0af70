"""SPELA layers and the contract they share."""

from spela.layers.contract import FusedOptimizer, LocalLayer
from spela.layers.linear import SpelaLinear
from spela.layers.normalize import RowNorm

__all__ = ["FusedOptimizer", "LocalLayer", "RowNorm", "SpelaLinear"]
