"""Where a network can be cut into parts that follow each other, and its parts."""

from spela.cutting.even import split_evenly
from spela.cutting.network import cut_network

__all__ = ["cut_network", "split_evenly"]
