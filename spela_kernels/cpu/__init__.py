"""Products on the CPU: which library makes one of a shape, and our own compiled passes."""

__all__ = []
