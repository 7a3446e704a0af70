"""The paper's experiments, one file each: declarations only."""

from spela.experiments.suite.ablation import ABLATION
from spela.experiments.suite.blocks import BLOCKS
from spela.experiments.suite.cnn import CNN
from spela.experiments.suite.cnn_head import CNN_HEAD
from spela.experiments.suite.early_exit import EARLY_EXIT
from spela.experiments.suite.fewshot import FEWSHOT
from spela.experiments.suite.memory import MEMORY
from spela.experiments.suite.mlp import MLP
from spela.experiments.suite.noise import NOISE
from spela.experiments.suite.transfer import TRANSFER

__all__ = [
    "ABLATION",
    "BLOCKS",
    "CNN",
    "CNN_HEAD",
    "EARLY_EXIT",
    "FEWSHOT",
    "MEMORY",
    "MLP",
    "NOISE",
    "TRANSFER",
]
