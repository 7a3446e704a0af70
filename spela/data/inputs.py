"""Files to label: arrays and images turned into samples of a trained network's shape."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from spela.data.arrays import as_samples
from spela.data.dataset import check_samples
from spela.data.idx import looks_like_idx, read_idx
from spela.data.npz import npz_keys, read_npy, read_npz
from spela.data.pictures import open_picture, warn_of_backgrounds
from spela.data.tensor_file import TENSOR_SUFFIX, read_tensor_inputs
from spela.files.text import printable

__all__ = ["check_scale", "image_files", "read_inputs", "shows_images", "takes_images"]

_logger = logging.getLogger(__name__)

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_KEYS = ("x", "test_x", "x_test", "test_images")

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def read_inputs(
    path: Paths, sample_shape: Sequence[int], *, train_dtype: torch.dtype | None = None
) -> Tensor:
    """Read what is to be labelled, as a tensor like a dataset's train_x.

    Args:
        path: an .npz (its array x, else its only array, else test_x), .safetensors (x, else test_x), .npy or
            idx file; a PNG or JPEG image, several of them, or a folder of them (sorted by name, see
            `image_files`).
            An image is converted to the network's number of channels, laid over black or white where
            it has transparent pixels (`open_picture`) and, where its size differs, resized (bilinear,
            without keeping proportions); both are logged as warnings.
        sample_shape: the network's (C, H, W) or (F,). Arrays may be flat or not, as long as the
            number of values fits; one sample without a batch axis is accepted.
        train_dtype: the dtype the network was trained from, if known: after uint8 pixels, floats
            outside 0..1 are refused as wrongly scaled; after floats, pixels are logged as a warning.

    Returns:
        (N, *sample_shape), uint8 or float32; `prepare` makes network inputs of it.

    Raises:
        ValueError: a missing, unreadable or empty file, a shape that does not fit, NaN, Inf or values that
            a dataset could not have either.
    """
    shape = tuple(sample_shape)
    if not isinstance(path, (str, os.PathLike)):
        files = [Path(item) for item in path]
    else:
        files = [Path(os.path.expanduser(path))]
    if len(files) != 1 or shows_images(files[0]):
        images = [file for item in files for file in image_files(item)]
        if not images:
            raise ValueError("path is an empty list; give at least one image file")
        x, where = _read_images(images, shape), str(images[0])
    else:
        x, where = _read_array(files[0], shape)
    check_scale(x, train_dtype, where)
    return x


def check_scale(x: Tensor, train_dtype: torch.dtype | None, where: str) -> None:
    """Refuse floats that are no scaled pixels after training on pixels; warn of pixels after floats.

    Args:
        x: uint8 or finite float samples.
        train_dtype: what the network was trained from; None: unknown, nothing is said.
        where: file or array name for messages.

    Raises:
        ValueError: trained on uint8, and x holds floats outside 0..1.
    """
    floats = train_dtype is not None and train_dtype.is_floating_point
    if floats and x.dtype == torch.uint8:
        _logger.warning(
            "%s: pixels become 0..1, but this network was trained on floats; give floats if those had "
            "another range",
            where,
        )
    if train_dtype == torch.uint8 and x.is_floating_point() and x.numel():
        low, high = (float(value) for value in torch.aminmax(x))
        if low < 0.0 or high > 1.0:
            raise ValueError(
                f"{where} holds floats from {low:g} to {high:g}, but this network was trained on "
                "pixels; give uint8 pixels 0..255, or floats divided by 255"
            )


def image_files(path: str | os.PathLike[str]) -> list[Path]:
    """The image files behind a path, in the order of the rows that `read_inputs` returns.

    Args:
        path: one image file, or a folder (not searched below; its hidden files are left out).

    Raises:
        ValueError: nothing there, or no PNG or JPEG file in it.
    """
    path = Path(os.path.expanduser(path))
    if not path.exists():
        raise ValueError(f"{path} does not exist; check the path")
    if not path.is_dir():
        if not _is_image(path):
            raise ValueError(
                f"{path} is not a PNG or JPEG file; give images, or one file of other samples alone"
            )
        return [path]
    # Hidden files of a picture's name are other systems' notes about it.
    files = sorted(
        file for file in path.iterdir() if _is_image(file) and not file.name.startswith(".")
    )
    if not files:
        raise ValueError(
            f"{path} holds no PNG or JPEG file; give a folder of images (subfolders are not read)"
        )
    return files


def shows_images(path: Path) -> bool:
    """Whether a path is read as images: one, or a folder.

    Example:
        >>> shows_images(Path("digit.png")), shows_images(Path("digits.npz"))
        (True, False)
    """
    return path.is_dir() or _is_image(path)


def takes_images(sample_shape: Sequence[int]) -> bool:
    """Whether a network for such samples can be given image files: of 1, 3 or 4 channels.

    Example:
        >>> takes_images((3, 32, 32)), takes_images((64,))
        (True, False)
    """
    return len(sample_shape) == 3 and sample_shape[0] in _MODES


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _IMAGE_SUFFIXES


def _read_images(files: list[Path], shape: tuple[int, ...]) -> Tensor:
    if not takes_images(shape):
        raise ValueError(
            f"images need a network for (1, H, W), (3, H, W) or (4, H, W) samples, this one takes "
            f"{shape}; give an .npz or .npy file"
        )
    channels, height, width = shape
    batch = np.empty((len(files), height, width, channels), np.uint8)
    resized, backgrounds = [], []
    for row, file in enumerate(files):
        image, background = open_picture(file, _MODES[channels], ("PNG", "JPEG"))
        backgrounds.append(background)
        if image.size != (width, height):
            resized.append(f"{file} ({image.width}x{image.height})")
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        batch[row] = np.asarray(image, np.uint8).reshape(height, width, channels)
    warn_of_backgrounds(files, backgrounds)
    if resized:
        _logger.warning(
            "resized %d of %d images to %dx%d, the first: %s",
            len(resized),
            len(files),
            width,
            height,
            resized[0],
        )
    return torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))


def _read_array(file: Path, shape: tuple[int, ...]) -> tuple[Tensor, str]:
    """Samples, and their name for messages."""
    suffix = file.suffix.lower()
    if not file.exists():  # else whatever kind is tried last would be missed
        raise ValueError(
            f"{file} does not exist: give an image, a folder of images, an idx, .npy or .npz file"
        )
    if suffix == ".npz":
        key = _choose_key(file)
        others = set(npz_keys(file)) - {key}
        if others if key != "x" else others & set(_KEYS):
            _logger.warning("%s: only its %s is read", file, key)
        where, array = f"{file}: {key}", read_npz(file, key)
    elif suffix == TENSOR_SUFFIX:
        array, key = read_tensor_inputs(file)
        where = f"{file}: {key}"
    elif suffix == ".npy":
        where, array = str(file), read_npy(file)
    elif looks_like_idx(file):
        where, array = str(file), read_idx(file)
    else:
        raise ValueError(
            f"{file} is not a known kind of input; expected .npz, .npy, an idx file, a file of features "
            "(.safetensors), .png, .jpg or a folder of images"
        )
    x = _fit(array, shape, where)
    check_samples(x, where)
    return x, where


def _choose_key(file: Path) -> str:
    keys = npz_keys(file)
    known = next((key for key in _KEYS if key in keys), None)
    if known is not None:
        return known
    if len(keys) == 1:
        return keys[0]
    raise ValueError(
        f"{file} must hold the inputs as x (or as its only array); "
        f"it holds {printable(', '.join(keys)) or 'no array'}"
    )


def _fit(array: np.ndarray, shape: tuple[int, ...], where: str) -> Tensor:
    """Bring an array to (N, *shape) if its axes say the same samples."""
    if array.shape[:1] == (0,):
        raise ValueError(f"{where} has shape {array.shape}, expected at least one sample")
    single = (shape, shape[1:] if len(shape) == 3 and shape[0] == 1 else shape)
    if array.shape in single or (len(shape) == 3 and array.shape == (*shape[1:], shape[0])):
        array = array[None]
    # (N, C, H, W) as the network has it may look channels-last to the general rule: leave it.
    if array.shape[1:] == shape and array.ndim == 4:
        array = array.reshape(len(array), -1)
    x = as_samples(array, where)
    same = tuple(x.shape[1:]) == shape
    one_is_flat = x.ndim == 2 or len(shape) == 1
    if not (same or (one_is_flat and math.prod(x.shape[1:]) == math.prod(shape))):
        raise ValueError(
            f"{where} has shape {array.shape}, expected (N, {', '.join(map(str, shape))}), "
            f"or {math.prod(shape)} values in each row"
        )
    return x.reshape(len(x), *shape)
