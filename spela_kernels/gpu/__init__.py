"""What all Triton kernels share.

Without Triton, `architectures.py`, `graphs.py`, `interpreting.py` and `tiles.py` import.
"""

__all__ = []
