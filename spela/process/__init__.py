"""Settings of the whole process for training: freed memory stays, denormal numbers are flushed."""

from spela.process.allocator import keep_freed_memory
from spela.process.denormals import flush_denormals

__all__ = ["flush_denormals", "keep_freed_memory"]
