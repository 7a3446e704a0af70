"""Training: run settings, the loop, records and checkpoints."""

from spela.training.checkpoint import Checkpoint, load_checkpoint, restore, save_checkpoint
from spela.training.config import RunConfig, parse_groups
from spela.training.diagnostics import LayerDiagnostics, Probe, diagnose
from spela.training.early_exit import ExitEvaluation, evaluate_early_exit
from spela.training.evaluate import (
    Evaluation,
    LayerwiseClassifier,
    batch_statistics,
    batch_statistics_accuracy,
    evaluate,
)
from spela.training.evidence import Evidence, read_checkpoint, read_evidence
from spela.training.lock import InUseError
from spela.training.loop import (
    Listener,
    Trainer,
    TrainingDivergedError,
    check_graph_mode,
)
from spela.training.records import RunFolder
from spela.training.schedule import extension_note
from spela.training.tensorboard import Listeners, TensorBoardListener

__all__ = [
    "Checkpoint",
    "Evaluation",
    "Evidence",
    "ExitEvaluation",
    "InUseError",
    "LayerDiagnostics",
    "LayerwiseClassifier",
    "Listener",
    "Listeners",
    "Probe",
    "RunConfig",
    "RunFolder",
    "TensorBoardListener",
    "Trainer",
    "TrainingDivergedError",
    "batch_statistics",
    "batch_statistics_accuracy",
    "check_graph_mode",
    "diagnose",
    "evaluate",
    "evaluate_early_exit",
    "extension_note",
    "load_checkpoint",
    "parse_groups",
    "read_checkpoint",
    "read_evidence",
    "restore",
    "save_checkpoint",
]
