"""How a back-end is judged, by tests and by a user's self-test: parity with float64, and meters of a GPU."""

__all__ = []
