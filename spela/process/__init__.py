"""Settings of the whole process for training: freed memory, denormal numbers, waiting threads, generators."""

from spela.process.allocator import keep_freed_memory
from spela.process.denormals import flush_denormals
from spela.process.processor import multiplies_bf16
from spela.process.seeds import seeded
from spela.process.threads import calm_threads, limit_threads, threads_used
from spela.process.variables import variable_set

__all__ = [
    "calm_threads",
    "flush_denormals",
    "keep_freed_memory",
    "limit_threads",
    "multiplies_bf16",
    "seeded",
    "threads_used",
    "variable_set",
]
