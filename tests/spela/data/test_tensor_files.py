"""Datasets in safetensors files: exact values, no trust in headers."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from spela.data import load_dataset, read_tensor_facts
from spela.data.tensor_file import FEATURES_FORMAT
from spela.files.tensors import save_tensors


def _tensors(**replace: torch.Tensor) -> dict[str, torch.Tensor]:
    x = torch.arange(12.0).reshape(4, 3)
    y = torch.tensor([0, 1, 1, 0])
    return {"train_x": x, "train_y": y, "test_x": x[:2] + 1, "test_y": y[:2].clone()} | replace


def _facts(**replace: object) -> dict[str, str]:
    facts = {"name": "mine", "class_names": ["cat", "dog", "cow"], "size": 96} | replace
    return {"format": FEATURES_FORMAT, "features": json.dumps(facts)}


def test_values_names_and_facts_survive(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(_tensors(), path, _facts())
    data = load_dataset(path)
    assert torch.equal(data.train_x, _tensors()["train_x"])
    assert torch.equal(data.test_y, torch.tensor([0, 1]))
    assert (data.name, data.class_names, data.num_classes) == ("mine", ("cat", "dog", "cow"), 3)
    assert read_tensor_facts(path)["size"] == 96


def test_a_file_from_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "pixels.safetensors"
    x = torch.randint(0, 256, (4, 1, 2, 2), dtype=torch.uint8)
    half = torch.ones(2, 3).half()
    save_file(_tensors(train_x=x, test_x=x[:2].clone(), train_y=_tensors()["train_y"].int()), path)
    data = load_dataset(path)
    assert (data.name, data.class_names) == ("pixels", ("0", "1"))
    assert data.train_x.dtype == torch.uint8
    assert read_tensor_facts(path) == {}
    save_file(_tensors(train_x=_tensors()["train_x"].half(), test_x=half), path)
    assert load_dataset(path).train_x.dtype == torch.float32


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        ({"train_x": torch.ones(4, 3, dtype=torch.int32)}, "train_x must be uint8"),
        ({"test_y": torch.tensor([0.0, 1.0])}, "test_y must be integer class indices"),
        ({"test_y": torch.tensor([[0, 1]])}, "test_y must be class indices of shape"),
        ({"train_x": torch.full((4, 3), float("nan"))}, "NaN"),
        ({"train_y": torch.tensor([0, 3, 3, 0])}, "class 1 has no training sample"),
        ({"test_y": torch.tensor([0, 7])}, r"must be in 0\.\.1"),
        ({"test_x": torch.ones(2, 4)}, "test_x samples are"),
    ],
)
def test_tensors_that_are_no_dataset(
    replace: dict[str, torch.Tensor], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.safetensors"
    save_file(_tensors(**replace), path)
    with pytest.raises(ValueError, match=message):
        load_dataset(path)


def test_other_content_is_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_file({f"layer.{i}": torch.ones(1) for i in range(10)}, path)
    with pytest.raises(ValueError, match=r"it holds layer\.0, .*, \.\.\.; `spela features` writes"):
        load_dataset(path)


@pytest.mark.parametrize("damage", ["not json", "[]", '{"name": 3}', '{"name": "a"}', "[" * 99_999])
def test_a_damaged_description(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(_tensors(), path, {"format": FEATURES_FORMAT, "features": damage})
    with pytest.raises(ValueError, match="description is damaged"):
        load_dataset(path)


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(_tensors(), path)
    good = path.read_bytes()
    header = json.dumps({"train_x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})
    for content in (
        b"",
        b"hello",
        good[: len(good) // 2],
        good[:-1],
        (2**62).to_bytes(8, "little") + b"{}",
        struct.pack("<Q", len(header)) + header.encode() + bytes(8),
        struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc",
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a readable safetensors file") as caught:
            load_dataset(path)
        assert "\n" not in str(caught.value)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="idx"):
        load_dataset(path)


def test_a_changed_value_is_found_in_a_file_of_ours_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, _tensors(), _facts())
    content = bytearray(path.read_bytes())
    content[-1] ^= 64
    load_dataset(path)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged .*make it again with `spela features`"):
        load_dataset(path)
    assert read_tensor_facts(path)["size"] == 96
    save_file(_tensors(), path, {"sha256": "of something else"})
    load_dataset(path)


def test_pictures_have_the_layouts_of_arrays(tmp_path: Path) -> None:
    path, shape = tmp_path / "pixels.safetensors", (4, 5, 6, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    labels = {"train_y": torch.tensor([[0], [1], [0], [1]]), "test_y": torch.tensor([0, 1])}
    save_file(_tensors(train_x=pixels, test_x=pixels[:2].clone(), **labels), path)
    data = load_dataset(path)
    assert torch.equal(data.train_x, pixels.permute(0, 3, 1, 2))
    assert data.train_y.tolist() == [0, 1, 0, 1]
    grey = pixels[..., 0].contiguous()
    save_file(_tensors(train_x=grey, test_x=grey[:2].clone()), path)
    assert load_dataset(path).sample_shape == (1, 5, 6)
    half = torch.ones(4, 3, dtype=torch.bfloat16)
    save_file(_tensors(train_x=half, test_x=half[:2].clone()), path)
    assert load_dataset(path).train_x.dtype == torch.float32
