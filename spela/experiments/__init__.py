"""Recipes, the networks they build, and runs as files."""

from spela.bodies import NETWORKS
from spela.experiments.models import build_network, build_optimizer, network_for
from spela.experiments.recipes import RECIPES, make_config
from spela.experiments.runs import LoadedRun, load_data, load_run, run

__all__ = [
    "NETWORKS",
    "RECIPES",
    "LoadedRun",
    "build_network",
    "build_optimizer",
    "load_data",
    "load_run",
    "make_config",
    "network_for",
    "run",
]
