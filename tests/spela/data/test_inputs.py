"""Files to label: arrays and images of all accepted kinds."""

from __future__ import annotations

import gzip
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from spela.data import read_inputs
from spela.data.inputs import image_files

GRAY = np.random.default_rng(4).integers(0, 256, (5, 6, 7), np.uint8)
COLOUR = np.random.default_rng(5).integers(0, 256, (5, 6, 7, 3), np.uint8)


@pytest.mark.parametrize("kind", ["npz", "npz-only-array", "npz-dataset", "npy", "idx", "idx-gz"])
def test_array_files(tmp_path, idx_bytes, kind):
    path = tmp_path / f"in.{kind[:3]}"
    if kind == "npz":
        np.savez(path, x=GRAY, y=np.zeros(5))
    elif kind == "npz-only-array":
        np.savez(path, whatever=GRAY)
    elif kind == "npz-dataset":
        np.savez(path, train_x=GRAY[:2], train_y=np.zeros(2), test_x=GRAY, test_y=np.zeros(5))
    elif kind == "npy":
        np.save(path, GRAY)
    else:
        data = idx_bytes(GRAY)
        path.write_bytes(gzip.compress(data) if kind == "idx-gz" else data)
    found = read_inputs(path, (1, 6, 7))
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.numpy(), GRAY[:, None])


@pytest.mark.parametrize(
    ("array", "shape", "wanted"),
    [
        (GRAY, (42,), GRAY.reshape(5, 42)),
        (GRAY.reshape(5, 42), (1, 6, 7), GRAY[:, None]),
        (GRAY[0], (1, 6, 7), GRAY[:1, None]),
        (COLOUR, (3, 6, 7), COLOUR.transpose(0, 3, 1, 2)),
        (COLOUR.transpose(0, 3, 1, 2), (3, 6, 7), COLOUR.transpose(0, 3, 1, 2)),
        (COLOUR[0], (3, 6, 7), COLOUR[:1].transpose(0, 3, 1, 2)),
        (COLOUR[0].transpose(2, 0, 1), (3, 6, 7), COLOUR[:1].transpose(0, 3, 1, 2)),
        (np.linspace(0, 1, 8), (8,), np.linspace(0, 1, 8, dtype=np.float32)[None]),
        (COLOUR, (6, 7, 3), COLOUR),
    ],
    ids=[
        "images-to-flat",
        "flat-to-images",
        "one-gray",
        "channels-last",
        "channels-first",
        "one-channels-last",
        "one-channels-first",
        "one-row",
        "last-axis-3-is-width",
    ],
)
def test_axes_are_matched_to_the_network(tmp_path, array, shape, wanted):
    np.save(tmp_path / "in.npy", array)
    found = read_inputs(tmp_path / "in.npy", shape)
    np.testing.assert_array_equal(found.numpy(), wanted)


@pytest.mark.parametrize(
    ("array", "shape", "message"),
    [
        (GRAY, (1, 7, 6), r"has shape \(5, 6, 7\), expected \(N, 1, 7, 6\)"),
        (GRAY, (41,), "or 41 values in each row"),
        (GRAY[:0], (1, 6, 7), "at least one sample"),
        (GRAY[:0, None], (1, 6, 7), "at least one sample"),
        (np.array([[0.5, np.nan]]), (2,), "1 values that are NaN, Inf or beyond float32"),
        (np.array([[0.5, 1e300]]), (2,), "1 values that are NaN, Inf or beyond float32"),
        (np.array([[0.5, -1e20]]), (2,), r"a largest value of 1e\+20"),
        (np.array([[1, 2]]), (2,), "got int64"),
        (np.array([[1, {}]], object), (2,), "array of Python objects"),
        (np.float32(1), (2,), "got shape"),
    ],
    ids=[
        "size",
        "features",
        "empty",
        "no image",
        "nan",
        "overflow",
        "square",
        "int",
        "objects",
        "scalar",
    ],
)
def test_arrays_that_do_not_fit(tmp_path, array, shape, message):
    np.save(tmp_path / "in.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=message) as caught:
        read_inputs(tmp_path / "in.npy", shape)
    assert "in.npy" in str(caught.value)


def test_wrongly_scaled_floats_are_refused_after_pixels(tmp_path):
    np.save(tmp_path / "in.npy", GRAY.astype(np.float32))
    with pytest.raises(ValueError, match="trained on pixels"):
        read_inputs(tmp_path / "in.npy", (1, 6, 7), train_dtype=torch.uint8)
    assert read_inputs(tmp_path / "in.npy", (1, 6, 7)).dtype == torch.float32
    np.save(tmp_path / "in.npy", GRAY.astype(np.float32) / 255)
    found = read_inputs(tmp_path / "in.npy", (1, 6, 7), train_dtype=torch.uint8)
    assert float(found.max()) <= 1.0


def test_pixels_after_floats_are_said(tmp_path, caplog):
    np.save(tmp_path / "in.npy", GRAY)
    Image.fromarray(GRAY[0]).save(tmp_path / "in.png")
    for name in ("in.npy", "in.png"):
        for dtype in (torch.uint8, None):
            read_inputs(tmp_path / name, (1, 6, 7), train_dtype=dtype)
        assert not caplog.records
        read_inputs(tmp_path / name, (1, 6, 7), train_dtype=torch.float32)
        assert f"{name}: pixels become 0..1, but this network was trained on floats" in caplog.text
        caplog.clear()


def test_a_folder_of_images_in_the_order_of_names(tmp_path, caplog):
    for row in range(5):
        Image.fromarray(GRAY[row]).save(tmp_path / f"{9 - row}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    with caplog.at_level(logging.WARNING):
        found = read_inputs(tmp_path, (1, 6, 7))
    np.testing.assert_array_equal(found.numpy(), GRAY[::-1, None])
    assert [file.name for file in image_files(tmp_path)] == [f"{row}.png" for row in range(5, 10)]
    assert not caplog.records
    several = read_inputs([tmp_path / "9.png", str(tmp_path / "5.png")], (1, 6, 7))
    np.testing.assert_array_equal(several.numpy(), GRAY[[0, 4], None])


def test_colours_are_converted(tmp_path):
    Image.fromarray(COLOUR[0]).save(tmp_path / "c.png")
    found = read_inputs(tmp_path / "c.png", (3, 6, 7))
    np.testing.assert_array_equal(found.numpy(), COLOUR[:1].transpose(0, 3, 1, 2))
    gray = read_inputs(tmp_path / "c.png", (1, 6, 7))
    luma = COLOUR[0] @ np.array([0.299, 0.587, 0.114])
    assert np.abs(gray[0, 0].numpy() - luma).max() <= 1
    Image.fromarray(GRAY[0]).save(tmp_path / "g.png")
    assert torch.equal(
        read_inputs(tmp_path / "g.png", (3, 6, 7)),
        torch.from_numpy(GRAY[:1, None]).expand(1, 3, 6, 7),
    )


def test_other_sizes_are_resized_with_a_warning(tmp_path, caplog):
    flat = np.full((30, 20), 77, np.uint8)
    flat[:, 10:] = 200
    Image.fromarray(flat).save(tmp_path / "big.jpg", quality=95)
    with caplog.at_level(logging.WARNING):
        found = read_inputs(tmp_path / "big.jpg", (1, 6, 8))
    assert tuple(found.shape) == (1, 1, 6, 8)
    assert (found[0, 0, :, :3].int() - 77).abs().max() <= 3
    assert (found[0, 0, :, 5:].int() - 200).abs().max() <= 3
    assert "resized 1 of 1 images to 8x6" in caplog.text


def test_images_that_cannot_be_read(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"cannot read .*text\.png as an image"):
        read_inputs(tmp_path / "text.png", (1, 6, 7))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cannot read .*cut\.png"):
        read_inputs(tmp_path / "cut.png", (1, 64, 64))
    Image.fromarray(noise.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="8 bits a channel"):
        read_inputs(tmp_path / "deep.png", (1, 64, 64))
    with pytest.raises(ValueError, match=r"none\.png does not exist; check the path"):
        read_inputs(tmp_path / "none.png", (1, 6, 7))
    with pytest.raises(ValueError, match=r"this one takes \(42,\)"):
        read_inputs(tmp_path / "deep.png", (42,))


def test_other_files(tmp_path):
    with pytest.raises(ValueError, match="empty list"):
        read_inputs([], (1, 6, 7))
    (tmp_path / "in.txt").write_text("hello world")
    with pytest.raises(ValueError, match="not a known kind of input"):
        read_inputs(tmp_path / "in.txt", (1, 6, 7))
    with pytest.raises(ValueError, match="does not exist"):
        read_inputs(tmp_path / "none", (1, 6, 7))
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="holds no PNG or JPEG"):
        read_inputs(tmp_path / "folder", (1, 6, 7))
    np.savez(tmp_path / "two.npz", a=GRAY, b=GRAY)
    with pytest.raises(ValueError, match="it holds a, b"):
        read_inputs(tmp_path / "two.npz", (1, 6, 7))


@pytest.mark.parametrize(("more", "said"), [({"test_y": np.zeros(5)}, True), ({}, False)])
def test_which_of_several_arrays_is_read_is_said(tmp_path, caplog, more, said):
    path = tmp_path / "in.npz"
    np.savez(path, test_x=GRAY, **more)
    read_inputs(path, (1, 6, 7))
    assert ("only its test_x is read" in caplog.text) == said


@pytest.mark.parametrize(("other", "said"), [("test_x", True), ("y", False)])
def test_samples_beside_x_are_not_left_out_without_a_word(tmp_path, caplog, other, said):
    path = tmp_path / "in.npz"
    np.savez(path, x=GRAY, **{other: GRAY})
    read_inputs(path, (1, 6, 7))
    assert ("only its x is read" in caplog.text) == said


def test_hidden_files_of_a_folder_are_left_out(tmp_path):
    Image.fromarray(GRAY[0]).save(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(bytes(60))  # as another system leaves them
    assert image_files(tmp_path) == [tmp_path / "a.png"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_files_of_features_are_labelled_by_their_test_part(tmp_path, dtype):
    x = torch.arange(12.0).view(4, 3).to(dtype)
    others = {"train_x": x + 1, "train_y": torch.arange(4), "test_y": torch.arange(4)}
    save_file({"test_x": x, **others}, tmp_path / "features.safetensors")
    assert torch.equal(read_inputs(tmp_path / "features.safetensors", (3,)), x.float())
    save_file({"x": x + 2, "test_x": x}, tmp_path / "own.safetensors")
    assert torch.equal(read_inputs(tmp_path / "own.safetensors", (3,)), x.float() + 2)
    save_file({"weights": x}, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="must hold the inputs as x or test_x; it holds weights"):
        read_inputs(tmp_path / "none.safetensors", (3,))
    with pytest.raises(
        ValueError, match=r"features.safetensors: test_x has shape \(4, 3\), expected"
    ):
        read_inputs(tmp_path / "features.safetensors", (5,))
