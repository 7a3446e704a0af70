"""The SPELA linear layer: reference, back-ends and public functions.

To read how it runs on a GPU: `reference.py` says what is computed, `kernels.py` in which launches;
`gpu/formulas.py` and `gpu/loads.py` hold what the kernels call, `update_kernel.py` and `gpu/updates.py` the
last launch; `launch.py` gives them their buffers and `configs.py` their tiles.
"""

from spela_kernels.linear.functional import (
    linear_adam_,
    linear_forward,
    linear_gradient,
    linear_loss,
    linear_sgd_,
)
from spela_kernels.linear.types import Gradient, Parameters

__all__ = [
    "Gradient",
    "Parameters",
    "linear_adam_",
    "linear_forward",
    "linear_gradient",
    "linear_loss",
    "linear_sgd_",
]
