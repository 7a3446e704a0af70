"""Rivals of SPELA on the same shapes, data and loop."""

from spela.baselines.backprop import BackpropSequential

__all__ = ["BackpropSequential"]
