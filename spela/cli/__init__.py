"""The command line: demo, train, evaluate, predict, bench, info."""

from spela.cli.main import app, main

__all__ = ["app", "main"]
