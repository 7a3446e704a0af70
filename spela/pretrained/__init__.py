"""Networks as folders that the Hugging Face Hub knows: config.json, model.safetensors, README.md."""

from spela.pretrained.mixin import Pretrained

__all__ = ["Pretrained"]
