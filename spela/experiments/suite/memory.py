"""Peak memory against depth and width, from the benchmark's figures."""

from __future__ import annotations

from spela.experiments.declare import Experiment

__all__ = ["MEMORY"]

MEMORY = Experiment(
    name="memory",
    title="Peak memory and time of a step against depth",
    data=(),
    rows=(),
    source="the authors' analysis: activations N against L * N, multiply-adds 0.67 of backprop's",
    measure="memory",
)
