"""The day on a GPU: `python -m bench.gpu --out DIR` runs tests, proofs and tables within ten minutes."""

__all__: list[str] = []
