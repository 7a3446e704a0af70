"""Datasets by name or from a user's files, and mini-batches on the training device."""

from __future__ import annotations

from spela.data.arrays import as_tensor
from spela.data.batches import Batches, epoch_generator
from spela.data.dataset import Dataset
from spela.data.inputs import check_scale, read_inputs
from spela.data.photos import PhotoSet
from spela.data.prepare import prepare
from spela.data.registry import (
    canonical_name,
    dataset_names,
    is_available,
    load_dataset,
    load_images,
)
from spela.data.source import default_data_root
from spela.data.tensor_file import read_tensor_facts
from spela.data.transform import add_label_noise, add_noise, resize_images, split_anew

__all__ = [
    "Batches",
    "Dataset",
    "PhotoSet",
    "add_label_noise",
    "add_noise",
    "as_tensor",
    "canonical_name",
    "check_scale",
    "dataset_names",
    "default_data_root",
    "epoch_generator",
    "is_available",
    "load_dataset",
    "load_images",
    "prepare",
    "read_inputs",
    "read_tensor_facts",
    "resize_images",
    "split_anew",
]
