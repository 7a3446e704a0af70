"""Rivals of SPELA on the same shapes, data and loop."""

from spela.baselines.backprop import BackpropSequential
from spela.baselines.forward_forward import ForwardForwardLayer, ForwardForwardSequential
from spela.baselines.mono_forward import MonoForwardLayer, MonoForwardSequential
from spela.baselines.pepita import PepitaSequential

__all__ = [
    "BackpropSequential",
    "ForwardForwardLayer",
    "ForwardForwardSequential",
    "MonoForwardLayer",
    "MonoForwardSequential",
    "PepitaSequential",
]
