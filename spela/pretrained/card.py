"""The README.md that a saved network gets: what it is and how to load it."""

from __future__ import annotations

from torch import nn

from spela.layers import LocalLayer

__all__ = ["network_card"]


def network_card(net: nn.Sequential, repo_id: str | None = None) -> str:
    """A model card in Markdown, with the header that the Hub reads.

    Args:
        net: The network.
        repo_id: Its repository, owner/name, if it is known.

    Example:
        >>> print(network_card(nn.Sequential(nn.Linear(2, 3)), "me/net").splitlines()[5])
        # SPELA network
    """
    layers = [module for module in net if isinstance(module, LocalLayer)]
    classes = layers[-1].num_classes if layers else 0
    numbers = sum(parameter.numel() for parameter in net.parameters())
    where = repr(repo_id or "FOLDER")
    return f"""---
library_name: torch-spela
tags: [spela, local-learning]
---

# SPELA network

{len(layers)} layers that learn by local losses, {classes} classes, {numbers:,} parameters. Every layer can
answer: scores are cosines in -1..1, not calibrated probabilities.

What it was trained on, how good it is and what an input must look like: to be written here.

## How to load

```python
from spela import SpelaSequential  # pip install torch-spela

net = SpelaSequential.from_pretrained({where})  # eval mode; net.predict(x), net.layer_scores(x)
```

The weights are safetensors and the layers are described in config.json: reading them runs no code.

## Architecture

```
{repr(net).replace("```", "'''")}
```
"""
