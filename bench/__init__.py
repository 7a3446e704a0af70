"""Benchmarks: `make bench`."""

__all__: list[str] = []
