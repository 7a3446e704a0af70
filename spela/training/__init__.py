"""Training: run settings, the loop, records and checkpoints."""

from spela.training.checkpoint import Checkpoint, load_checkpoint, restore, save_checkpoint
from spela.training.config import RunConfig
from spela.training.evaluate import Evaluation, LayerwiseClassifier, evaluate
from spela.training.loop import Listener, Trainer, TrainingDivergedError
from spela.training.records import RunFolder

__all__ = [
    "Checkpoint",
    "Evaluation",
    "LayerwiseClassifier",
    "Listener",
    "RunConfig",
    "RunFolder",
    "Trainer",
    "TrainingDivergedError",
    "evaluate",
    "load_checkpoint",
    "restore",
    "save_checkpoint",
]
