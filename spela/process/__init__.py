"""What a program may ask of its process for the length of a training."""

from spela.process.allocator import keep_freed_memory
from spela.process.denormals import flush_denormals

__all__ = ["flush_denormals", "keep_freed_memory"]
