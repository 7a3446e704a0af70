"""Samples that leave at the first layer that is sure enough."""

from __future__ import annotations

from spela.experiments.declare import Experiment, Row

__all__ = ["EARLY_EXIT"]

EARLY_EXIT = Experiment(
    name="early-exit",
    title="Early exit: accuracy against multiply-adds",
    data=("fashion-mnist",),
    rows=(
        Row("best", "best", settings={"layers": (1024, 1024, 1024), "epochs": 20}),
        Row("best, 5 layers", "best", settings={"layers": (1024,) * 5, "epochs": 20}),
    ),
    source="the paper says that inference can stop at any layer and gives no figures",
    measure="exits",
    main=("best*",),
    headline=(("best, calibrated", "fashion-mnist"),),
    quick={"mlp": {"max_width": 32}},
)
