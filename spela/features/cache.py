"""Features as a file: tensors and a description of how they were made, in one safetensors file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from spela.data import Dataset, PhotoSet, read_tensor_facts
from spela.data.tensor_file import FEATURES_FORMAT, TENSOR_SUFFIX, read_tensor_dataset
from spela.features.backbones import Backbone
from spela.features.extract import Selection
from spela.files.tensors import save_tensors

__all__ = ["describe", "feature_file", "is_cached", "save_features"]


def feature_file(data_root: Path, data: str, backbone: str) -> Path:
    """Where features go unless told otherwise, and where the transfer experiment looks for them.

    Args:
        data_root: The folder for datasets.
        data: The dataset's name.
        backbone: The backbone's.

    Returns:
        data_root/features/DATA-BACKBONE.safetensors; what does not suit a file's name becomes "-".

    Example:
        >>> feature_file(Path("data"), "pets", "hf-hub:timm/resnet18").name
        'pets-hf-hub-timm-resnet18.safetensors'
    """
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{data}-{backbone}")
    return data_root / "features" / f"{stem}{TENSOR_SUFFIX}"


def describe(
    data: Dataset | PhotoSet, backbone: Backbone, size: int, selection: Selection
) -> dict[str, Any]:
    """Everything that decides the features, as the file's description has it.

    Args:
        data: The images.
        backbone: What they go through.
        size: Height and width it sees.
        selection: Which samples.

    Returns:
        JSON values.
    """
    counts = {part: len(getattr(data, f"{part}_y")) for part in ("train", "test")}
    asked = {"train": selection.train, "test": selection.test}
    wanted = {part: counts[part] if n is None else n for part, n in asked.items()}
    return {
        "name": f"{data.name}-{backbone.name}-{size}",
        "dataset": data.name,
        "data_digest": data.digest,
        "class_names": list(data.class_names),
        "backbone": backbone.name,
        "weights_sha256": backbone.weights_sha256,
        "size": size,
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "photos": "centre square" if isinstance(data, PhotoSet) else "resized",
        "train_samples": wanted["train"],
        "test_samples": wanted["test"],
        "seed": None if wanted == counts else selection.seed,  # of no meaning where all are taken
    }


def is_cached(path: Path, facts: dict[str, Any]) -> bool:
    """Whether `path` already holds exactly these features, undamaged.

    Args:
        path: Where they would be written.
        facts: From `describe`.

    Raises:
        ValueError: If `path` does not end in .safetensors, or is there and holds something else.
    """
    if path.suffix.lower() != TENSOR_SUFFIX:
        raise ValueError(f"{path} must end in {TENSOR_SUFFIX}: a run reads features by that ending")
    if not path.exists():
        return False
    held = read_tensor_facts(path)
    if held == facts:
        try:
            read_tensor_dataset(path)
        except ValueError:
            return False  # damaged since
        return True
    different = [name for name in facts if held.get(name) != facts[name]]
    raise ValueError(
        f"{path} already holds other data ({', '.join(different) if held else 'no features'} differ): "
        "delete it, or choose another --out"
    )


def save_features(path: Path, features: Dataset, facts: dict[str, Any]) -> None:
    """Write features, whole or not at all.

    Args:
        path: A .safetensors file, made or replaced; its folder is made if missing.
        features: From `extract_features`.
        facts: From `describe`.

    Raises:
        OSError: If it cannot be written.
    """
    tensors = {
        name: getattr(features, name).contiguous()
        for name in ("train_x", "train_y", "test_x", "test_y")
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, tensors, {"format": FEATURES_FORMAT, "features": json.dumps(facts)})
