"""Benchmarks for developers: pytest groups (`make bench`), and tables (`python -m bench.NAME`)."""

__all__: list[str] = []
