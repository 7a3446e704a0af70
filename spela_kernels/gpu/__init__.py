"""What all Triton kernels share. Without Triton only `architectures.py`, `graphs.py` and `tiles.py` import."""

__all__ = []
