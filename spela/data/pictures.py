"""Image files as pixels, for every reader of images: what would be lost is refused or logged."""

from __future__ import annotations

import logging
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from spela.data.reading import MAX_DEFLATE_RATIO, one_line

__all__ = ["open_picture", "warn_of_backgrounds"]

_logger = logging.getLogger(__name__)

# Pillow would clip such pixels at 255 instead of scaling them.
_DEEP_MODES = ("I", "F")


def open_picture(path: Path, mode: str, formats: Sequence[str]) -> tuple[Image.Image, str | None]:
    """Open an image, turned as its EXIF data say, in the mode that is asked for.

    An image with transparent pixels is laid over black where what is drawn is light (its mean, weighted
    by opacity, from 128 on), else over white, so that it stands out whatever its ink; in mode RGBA it
    stays as it is. Of an animation the first frame is taken.

    Args:
        path: An image file with 8 bits a channel or fewer.
        mode: Pillow's L, RGB or RGBA.
        formats: Pillow's names of the formats that are tried; it has many more readers than are needed.

    Returns:
        The image, and what it was laid over: "black", "white", or None where nothing was transparent.

    Raises:
        ValueError: Missing, damaged, with more than 8 bits a channel, or transparent everywhere.
    """
    try:
        with Image.open(path, formats=list(formats)) as image:
            if image.width * image.height > path.stat().st_size * MAX_DEFLATE_RATIO * 8:
                raise ValueError(
                    f"it claims {image.width} x {image.height} pixels, too many for its size"
                )
            deep = _deep_pixels(image)
            if deep:
                raise ValueError(f"it has {deep} pixels; save it with 8 bits a channel")
            upright, background = ImageOps.exif_transpose(image), None
            if mode != "RGBA" and upright.has_transparency_data:
                upright, background = _over_background(upright.convert("RGBA"))
            return upright.convert(mode), background
    # Pillow reports damage as OSError, SyntaxError or DecompressionBombError, and of EXIF as struct.error.
    except (
        OSError, MemoryError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError,
    ) as error:  # fmt: skip
        raise ValueError(f"cannot read {path} as an image: {one_line(error)}") from error


def _deep_pixels(image: Image.Image) -> str:
    """What an image's pixels are called where they have more than 8 bits a channel, else nothing.

    Pillow's mode does not tell of colours with 16 bits, and reading would keep their upper halves only; the
    decoder that Pillow is going to use is named after what lies in the file, such as RGB;16B.
    """
    if image.mode.startswith(_DEEP_MODES):
        return image.mode
    decoders = " ".join(str(tile[3]) for tile in getattr(image, "tile", ()))
    return f"{image.mode};16" if ";16B" in decoders else ""  # BMP has BGR;16, of 5 and 6 bits


def _over_background(image: Image.Image) -> tuple[Image.Image, str | None]:
    opacity = np.asarray(image.getchannel("A"), np.float64)
    if opacity.min() == 255:
        return image, None
    if opacity.max() == 0:
        raise ValueError("it is transparent everywhere; save it with a background")
    ink = np.average(np.asarray(image.convert("RGB").convert("L")), weights=opacity)
    background = "black" if ink >= 128 else "white"
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image), background


def warn_of_backgrounds(files: Sequence[Path], backgrounds: Sequence[str | None]) -> None:
    """Say which images were laid over a background, in one line for all of them.

    Args:
        files: The images.
        backgrounds: What `open_picture` said of each.
    """
    laid = [(file, colour) for file, colour in zip(files, backgrounds, strict=True) if colour]
    if laid:
        colours = " and ".join(sorted({colour for _, colour in laid}))
        _logger.warning(
            "%d of %d images have transparent pixels and were laid over %s, whichever their drawing "
            "stands out from; the first: %s over %s",
            len(laid),
            len(files),
            colours,
            *laid[0],
        )
