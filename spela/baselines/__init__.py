"""Rivals of SPELA on the same shapes, data and loop."""

from spela.baselines.backprop import BackpropSequential
from spela.baselines.deep_supervision import DeeplySupervisedSequential
from spela.baselines.forward_forward import ForwardForwardLayer, ForwardForwardSequential
from spela.baselines.linear_heads import LinearHeadBlock
from spela.baselines.mono_forward import MonoForwardLayer, MonoForwardSequential
from spela.baselines.pepita import PepitaSequential

__all__ = [
    "BackpropSequential",
    "DeeplySupervisedSequential",
    "ForwardForwardLayer",
    "ForwardForwardSequential",
    "LinearHeadBlock",
    "MonoForwardLayer",
    "MonoForwardSequential",
    "PepitaSequential",
]
