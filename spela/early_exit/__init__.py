"""Answers before the last layer: when a layer is sure enough, and what the layers cost."""

from spela.early_exit.costs import LayerCost, layer_costs, multiply_adds
from spela.early_exit.policy import (
    ExitPolicy,
    Prediction,
    calibrate_thresholds,
    exit_thresholds,
    margin_and_label,
    mean_multiply_adds,
)

__all__ = [
    "ExitPolicy",
    "LayerCost",
    "Prediction",
    "calibrate_thresholds",
    "exit_thresholds",
    "layer_costs",
    "margin_and_label",
    "mean_multiply_adds",
    "multiply_adds",
]
