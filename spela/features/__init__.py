"""Pooled features of pretrained backbones, cached as files that are datasets."""

from spela.features.backbones import Backbone, backbone_names, load_backbone
from spela.features.cache import describe, feature_file, is_cached, save_features
from spela.features.extract import Selection, extract_features, select_samples

__all__ = [
    "Backbone",
    "Selection",
    "backbone_names",
    "describe",
    "extract_features",
    "feature_file",
    "is_cached",
    "load_backbone",
    "save_features",
    "select_samples",
]
