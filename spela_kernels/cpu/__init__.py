"""Products on the CPU: who makes one of a shape, and our own compiled ones."""

__all__ = []
