"""A network's weights in a SPELA network, by layers or by blocks."""

from spela.conversion.network import convert

__all__ = ["convert"]
