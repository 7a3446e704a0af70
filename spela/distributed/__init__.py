"""Training in several processes on torch.distributed: parts of each batch, or parts of the network."""

from spela.distributed.data_parallel import DataParallelSequential
from spela.distributed.folder import SharedRunFolder
from spela.distributed.layer_parallel import LayerParallelSequential
from spela.distributed.ranks import LostRankError, Ranks
from spela.distributed.runs import run_parallel

__all__ = [
    "DataParallelSequential",
    "LayerParallelSequential",
    "LostRankError",
    "Ranks",
    "SharedRunFolder",
    "run_parallel",
]
