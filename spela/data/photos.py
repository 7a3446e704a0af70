"""Images of many sizes, kept as files: read in batches at the size that is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from spela.data.dataset import Dataset
from spela.data.pictures import open_picture, warn_of_backgrounds

__all__ = ["PHOTO_SIZE", "PhotoSet", "read_photo"]

# What the authors' CNN takes, and the largest at which all of Food-101 (1.2 GB) fits a small machine.
PHOTO_SIZE = 64
# Formats found under the name .jpg in these datasets.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP")


def read_photo(path: Path, size: int) -> np.ndarray:
    """One image as a square: its middle, resized (bilinear, antialiased) so that the shorter side fits.

    Args:
        path: a JPEG, PNG, GIF or BMP file, read as `open_picture` does: a background that it was laid
            over is logged as a warning.
        size: height and width in pixels.

    Returns:
        uint8 (3, size, size), RGB.

    Raises:
        ValueError: missing, or not a readable image.
    """
    image, background = open_picture(path, "RGB", _FORMATS)
    warn_of_backgrounds([path], [background])
    square = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(square, np.uint8).transpose(2, 0, 1)


@dataclass(frozen=True, eq=False)
class PhotoSet:
    """A classification dataset whose images lie in files.

    Args:
        name: the dataset's name.
        train_files: N paths.
        train_y: (N,) int64 class indices.
        test_files: like train_files.
        test_y: like train_y.
        class_names: C names, in the order of the indices.
        source: where it was read from.

    Raises:
        ValueError: a part is empty, or labels and files do not match.
    """

    name: str
    train_files: tuple[Path, ...]
    train_y: Tensor
    test_files: tuple[Path, ...]
    test_y: Tensor
    class_names: tuple[str, ...]
    source: str = ""

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            files, y = getattr(self, f"{part}_files"), getattr(self, f"{part}_y")
            where = f"dataset {self.name!r} ({self.source}): {part}"
            if len(files) == 0 or len(files) != len(y):
                raise ValueError(
                    f"{where} has {len(files)} images and {len(y)} labels; expected as many, at least one"
                )
            if not 0 <= int(y.min()) <= int(y.max()) < len(self.class_names):
                raise ValueError(
                    f"{where}: labels must be in 0..{len(self.class_names) - 1}, "
                    f"got {int(y.min())}..{int(y.max())}"
                )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of files, labels and class names: the same pictures wherever they lie."""
        found = hashlib.sha256(repr(self.class_names).encode())
        for files, labels in ((self.train_files, self.train_y), (self.test_files, self.test_y)):
            found.update(f"{len(files)}".encode() + labels.numpy().tobytes())
            for path in files:
                found.update(hashlib.sha256(path.read_bytes()).digest())
        return found.hexdigest()

    def pixels(self, part: str, index: Sequence[int], size: int) -> Tensor:
        """Some of a part's images.

        Args:
            part: train or test.
            index: B positions in the part.
            size: height and width in pixels.

        Returns:
            uint8 (B, 3, size, size).

        Raises:
            ValueError: an image is missing or damaged.
        """
        files = getattr(self, f"{part}_files")
        batch = np.empty((len(index), 3, size, size), np.uint8)
        for row, position in enumerate(index):
            batch[row] = read_photo(files[position], size)
        return torch.from_numpy(batch)

    def load(self, size: int = PHOTO_SIZE) -> Dataset:
        """All images in memory, at one size.

        Raises:
            ValueError: an image is missing or damaged.
        """
        return Dataset(
            name=self.name,
            train_x=self.pixels("train", range(len(self.train_files)), size),
            train_y=self.train_y,
            test_x=self.pixels("test", range(len(self.test_files)), size),
            test_y=self.test_y,
            num_classes=len(self.class_names),
            class_names=self.class_names,
            source=self.source,
        )
