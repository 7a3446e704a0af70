"""Image files of every kind by their values: transparent, with palettes, deep, turned, moving."""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spela.data import read_inputs
from spela.data.photos import read_photo
from spela.data.pictures import open_picture

INK = np.zeros((8, 8), np.uint8)
INK[2:6, 3:5] = 255
INK[2, 5] = 102  # an edge, half covered


def _drawn(mode: str, colour: int | tuple[int, ...]) -> Image.Image:
    """A drawing in one colour on transparency."""
    pixels = np.empty((8, 8, len(mode)), np.uint8)
    pixels[..., :-1] = colour
    pixels[..., -1] = INK
    return Image.fromarray(pixels)


def _read(path: Path, channels: int = 1) -> np.ndarray:
    return read_inputs(path, (channels, 8, 8))[0].numpy().astype(int)


@pytest.mark.parametrize(
    ("mode", "colour", "background", "expected"),
    [
        ("RGBA", 255, "black", INK),
        ("RGBA", 0, "white", 255 - INK),
        ("LA", 255, "black", INK),
        ("LA", 0, "white", 255 - INK),
        ("LA", 128, "black", np.rint(INK / 255 * 128)),
        ("LA", 127, "white", 255 - np.rint(INK / 255 * 128)),
    ],
)
def test_ink_on_transparency(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    mode: str,
    colour: int,
    background: str,
    expected: np.ndarray,
) -> None:
    _drawn(mode, colour).save(tmp_path / "ink.png")
    assert np.abs(_read(tmp_path / "ink.png") - expected).max() <= 1
    assert np.abs(_read(tmp_path / "ink.png", 3) - expected).max() <= 1
    assert "1 of 1 images have transparent pixels" in caplog.text
    assert f"ink.png over {background}" in caplog.text
    caplog.clear()
    assert np.abs(read_photo(tmp_path / "ink.png", 8).astype(int) - expected).max() <= 1
    assert f"ink.png over {background}" in caplog.text


def test_colours_on_transparency_and_a_network_that_sees_opacity(tmp_path: Path) -> None:
    _drawn("RGBA", (200, 0, 0)).save(tmp_path / "red.png")
    red = _read(tmp_path / "red.png", 3)  # dark: over white
    assert red[:, 3, 3].tolist() == [200, 0, 0]
    assert red[:, 0, 0].tolist() == [255, 255, 255]
    whole = _read(tmp_path / "red.png", 4)
    np.testing.assert_array_equal(whole, np.asarray(_drawn("RGBA", (200, 0, 0))).transpose(2, 0, 1))


def test_an_opaque_alpha_channel_is_no_transparency(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "opaque.png")
    np.testing.assert_array_equal(
        _read(tmp_path / "opaque.png", 3), pixels[..., :3].transpose(2, 0, 1)
    )
    assert not caplog.records


@pytest.mark.parametrize("kind", ["index", "opacities", "grey", "colour"])
def test_one_value_that_means_transparent(tmp_path: Path, kind: str) -> None:
    drawn = (INK == 255).astype(np.uint8)  # 0: transparent, and black where that is dropped
    expected = 255 - 255 * drawn.astype(int)  # black ink, over white
    image, options = Image.fromarray(drawn), {}
    if kind in ("index", "opacities"):
        image.putpalette([0, 0, 0] * 256)
        options = {"transparency": 0 if kind == "index" else b"\x00\xff"}
    elif kind == "grey":
        image, options = Image.fromarray(9 * (1 - drawn)), {"transparency": 9}
    else:
        image = Image.fromarray(np.stack([0 * drawn, 9 * (1 - drawn), 0 * drawn], axis=-1))
        options = {"transparency": (0, 9, 0)}
    image.save(tmp_path / "in.png", **options)
    np.testing.assert_array_equal(_read(tmp_path / "in.png"), expected[None])
    np.testing.assert_array_equal(read_photo(tmp_path / "in.png", 8), np.stack([expected] * 3))


def test_a_folder_says_once_what_it_laid_over_what(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, colour in (("b", 255), ("c", 0), ("d", 0)):
        _drawn("RGBA", colour).save(tmp_path / f"{name}.png")
    Image.fromarray(INK).save(tmp_path / "a.png")
    found = read_inputs(tmp_path, (1, 8, 8))[:, 0].numpy()
    for row, expected in enumerate((INK, INK, 255 - INK, 255 - INK)):
        np.testing.assert_array_equal(found[row], expected)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "3 of 4 images have transparent pixels and were laid over black and white" in caplog.text
    assert f"{tmp_path / 'b.png'} over black" in caplog.text


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8)).save(tmp_path / "empty.png")
    with pytest.raises(ValueError, match=r"empty.png as an image: it is transparent everywhere"):
        _read(tmp_path / "empty.png")
    Image.fromarray(INK.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for read in (_read, lambda path: read_photo(path, 8)):
        with pytest.raises(ValueError, match=r"it has I(;16)? pixels; save it with 8 bits"):
            read(tmp_path / "deep.png")


def test_bits_palettes_and_inks(tmp_path: Path) -> None:
    Image.fromarray(INK).point(lambda v: 255 * (v > 127), "1").save(tmp_path / "bits.png")
    np.testing.assert_array_equal(_read(tmp_path / "bits.png")[0], np.where(INK > 127, 255, 0))
    paint = Image.fromarray((INK == 255).astype(np.uint8))
    paint.putpalette([10, 20, 30, 200, 100, 50])
    paint.save(tmp_path / "palette.png")
    found = _read(tmp_path / "palette.png", 3)
    assert found[:, 3, 3].tolist() == [200, 100, 50]
    assert found[:, 0, 0].tolist() == [10, 20, 30]
    assert (
        abs(_read(tmp_path / "palette.png")[0, 3, 3] - (0.299 * 200 + 0.587 * 100 + 0.114 * 50)) < 1
    )
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=100)
    assert np.abs(_read(tmp_path / "print.jpg", 3)[:, 4, 4] - [255, 0, 0]).max() <= 3


def test_photos_of_phones_are_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right
    Image.fromarray(INK).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(_read(tmp_path / "turned.png")[0], np.rot90(INK, -1))
    _drawn("LA", 0).save(tmp_path / "drawn.png", exif=exif)
    assert (
        np.abs(_read(tmp_path / "drawn.png")[0] - (255 - np.rot90(INK, -1).astype(int))).max() <= 1
    )


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_the_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(pixels) for pixels in (INK, 255 - INK)]
    path = tmp_path / f"moving.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_photo(path, 8), np.stack([INK] * 3))
    if suffix == "png":
        np.testing.assert_array_equal(_read(path)[0], INK)


@pytest.mark.parametrize(("colour", "bands"), [(2, 3), (4, 2), (6, 4)], ids=["RGB", "LA", "RGBA"])
def test_colours_of_16_bits_are_not_cut_to_their_upper_halves(
    colour: int, bands: int, tmp_path: Path
) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    pixels = np.repeat(np.arange(64).reshape(8, 8, 1), bands, axis=2).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", 8, 8, 16, colour, 0, 0, 0)
    path = tmp_path / "deep.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    for read in (_read, lambda path: read_photo(path, 8)):
        with pytest.raises(ValueError, match=r"it has \w+;16 pixels; save it with 8 bits"):
            read(path)


def test_a_bitmap_of_5_and_6_bits_is_no_deep_one(tmp_path: Path) -> None:
    pixels = np.full((8, 8), 0b11111_000000_11111, "<u2")  # red and blue
    head = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 16, 3, 128, 0, 0, 0, 0)
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    start = 14 + len(head) + len(masks)
    path = tmp_path / "photo.bmp"
    path.write_bytes(
        struct.pack("<2sIHHI", b"BM", start + 128, 0, 0, start) + head + masks + pixels.tobytes()
    )
    with Image.open(path) as image:
        assert image.tile[0][3][0] == "BGR;16"
    photo, _ = open_picture(path, "RGB", ("BMP",))
    assert photo.getpixel((0, 0)) == (255, 0, 255)


@pytest.mark.parametrize("kept", range(10, 14))
def test_damaged_exif_is_said_of_the_picture(tmp_path: Path, kept: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation
    Image.new("L", (4, 4)).save(tmp_path / "a.png", exif=exif.tobytes()[:kept])
    with pytest.raises(ValueError, match=r"cannot read .*a\.png as an image"):
        open_picture(tmp_path / "a.png", "L", ("PNG",))
