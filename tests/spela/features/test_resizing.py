"""Images are resized as image libraries do, and a file of features says what made it."""

from __future__ import annotations

import torch
from PIL import Image
from torch import nn

from spela.data import Dataset
from spela.features import Backbone, Selection, describe, extract_features


def test_images_in_memory_are_resized_as_image_libraries_do() -> None:
    x = torch.randint(256, (2, 3, 70, 90), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    data = Dataset("noise", x, torch.tensor([0, 1]), x[:1], torch.tensor([0]), 2, ("a", "b"))
    plain = Backbone("plain", nn.Flatten(), (0.0,) * 3, (1.0,) * 3, "0" * 64)
    found = (255 * extract_features(data, plain, 32).train_x).reshape(2, 3, 32, 32)
    for image, own in zip(x, found, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((32, 32), Image.BILINEAR)
        expected = torch.tensor(list(picture.tobytes())).reshape(32, 32, 3).permute(2, 0, 1)
        assert (own - expected).abs().max() <= 1  # its weights are whole numbers


def test_the_description_names_size_backbone_and_test_samples() -> None:
    x, y = torch.zeros(6, 1, 5, 7, dtype=torch.uint8), torch.arange(6) % 2
    data = Dataset("flat", x, y, x[:3], y[:3], 2, ("a", "b"))
    plain = Backbone("plain", nn.Flatten(), (0.0,) * 3, (1.0,) * 3, "0" * 64)
    facts = describe(data, plain, 48, Selection(None, 2))
    assert (facts["size"], facts["backbone"], facts["test_samples"]) == (48, "plain", 2)
