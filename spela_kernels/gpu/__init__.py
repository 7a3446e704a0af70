"""What all Triton kernels share. Only `architectures.py` and `tiles.py` import where Triton is absent."""

__all__ = []
