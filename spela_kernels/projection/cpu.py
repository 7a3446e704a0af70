"""The grouped projection on the CPU: the reference's products, with torch's fused kernel for Adam."""

from functools import partial

from spela_kernels.fused_rules import fused_adam_update_
from spela_kernels.projection import reference
from spela_kernels.projection.reference import backward, forward, scores, sgd_step_

__all__ = ["adam_step_", "backward", "forward", "scores", "sgd_step_"]

adam_step_ = partial(reference.adam_step_, update=fused_adam_update_)
