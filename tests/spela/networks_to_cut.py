"""Networks that the tests of cutting and conversion share, and what a part of one stores."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock


def small_cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(16 * 6 * 6, 10),
    )


def small_resnet(num_classes: int = 10) -> nn.Module:
    return models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=num_classes)


NETWORKS = {
    "sequential": (small_cnn, 16),
    "resnet": (lambda: small_resnet(), 32),
    "mobilenet": (lambda: models.mobilenet_v3_small(num_classes=10), 32),
    "swin": (
        lambda: models.SwinTransformer([2, 2], 16, [1, 1], [2, 2], [4, 4], num_classes=10),
        32,
    ),
    "vit": (lambda: models.VisionTransformer(32, 8, 4, 2, 32, 64, num_classes=10), 32),
}


def stored_bytes(part: nn.Module, x: Tensor) -> int:
    """Bytes that torch keeps for a part's gradient, counted here once more."""
    own = {t.untyped_storage()._cdata for t in (*part.parameters(), *part.buffers())}
    kept = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        part(x)
    return sum(kept.values())
