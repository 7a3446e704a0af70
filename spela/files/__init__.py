"""Files that are whole or absent, and named tensors in them."""

__all__ = []
