"""Optimizers that know the fused update: torch.optim's SGD and Adam with local steps on top.

State, hyper-parameters and LR schedulers are torch's, so `step()` on gradients and the fused local steps
can be mixed and give the same numbers, to rounding. Two exceptions, both of convolutions with batch norm:
where its factor is exactly 0, all values of a max-pooling window are equal, and the fused step takes another
subgradient than autograd does; and in a batch's own statistics the gradient of the convolution's bias is 0,
where autograd finds rounding, of which Adam makes steps.

Step hooks are called once for each layer that a local step trains, around its whole update, whatever the
optimizer: torch's own optimizers call them in their `step`. A fused step has no gradients for a
pre-hook to see.
"""

from spela.optim.adam import LocalAdam
from spela.optim.groups import layer_groups
from spela.optim.sgd import LocalSGD

__all__ = ["LocalAdam", "LocalSGD", "layer_groups"]
