"""A network's folder: config.json, model.safetensors and README.md, as the Hub's own libraries name them."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from spela.files.atomic import Content, write_all_atomically
from spela.files.tensors import fill_tensors, read_tensors
from spela.layers.plain import departure, parts_of
from spela.pretrained.card import network_card
from spela.pretrained.modules import build_module, describe_module, shapes_of

__all__ = ["CARD", "CONFIG", "WEIGHTS", "read_network", "write_network"]

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"
_FORMAT = "spela-network-1"
# In the weights' metadata: a digest of what config.json says of the network they belong to.
_DIGEST = "spela_config_sha256"


def write_network(net: nn.Sequential, folder: Path, card: str | None, repo_id: str | None) -> None:
    """Write a network's three files, all or none; an older README.md stays unless a card is given.

    Args:
        net: Its modules run one after the other.
        folder: Made if missing.
        card: Text of README.md; None: one that says what the network is.
        repo_id: The repository that such a card names.

    Raises:
        ValueError: If the network cannot be described, holds no values or shares weights between modules, or
            the folder holds files of something else.
        OSError: If it cannot be written.
    """
    config = _config(net)
    tensors = _own_tensors(net)
    _check_folder(folder)
    metadata = {"format": "pt", _DIGEST: _digest(config)}
    files: dict[Path, Content] = {
        folder / WEIGHTS: lambda name: fill_tensors(name, tensors, metadata),
        folder / CONFIG: json.dumps(config, indent=2) + "\n",
    }
    if card is not None or not (folder / CARD).exists():
        text = network_card(net, repo_id) if card is None else card
        files[folder / CARD] = text
    folder.mkdir(parents=True, exist_ok=True)
    write_all_atomically(files)


def _config(net: nn.Sequential) -> dict[str, Any]:
    departs = departure(net, type(net))
    if departs:
        raise ValueError(f"`net` ({type(net).__name__}) {departs}")
    modules = {name: describe_module(m, name) for name, m in parts_of(net).items()}
    frozen = [name for name, p in net.named_parameters() if not p.requires_grad]
    return {
        "format": _FORMAT,
        "library_name": "torch-spela",
        "architectures": ["SpelaSequential"],
        "modules": modules,
        "frozen": frozen,
    }


def _digest(config: dict[str, Any]) -> str:
    network = {key: config.get(key) for key in ("modules", "frozen")}
    return hashlib.sha256(json.dumps(network, sort_keys=True).encode()).hexdigest()


def _own_tensors(net: nn.Sequential) -> dict[str, Tensor]:
    """The state; of weights that two modules share, a file could not say so."""
    seen: dict[tuple[str, int], str] = {}
    for name, value in net.state_dict(keep_vars=True).items():
        if value.is_meta:
            raise ValueError(
                f"{name} is on the meta device and holds no values: load weights first"
            )
        # An empty tensor has no memory to share.
        place = ("at", value.data_ptr()) if value.numel() else ("", id(value))
        if place in seen:
            raise ValueError(
                f"{seen[place]} and {name} are one tensor, which a saved network cannot say: give each "
                "module weights of its own, as copy.deepcopy makes them"
            )
        seen[place] = name
    return {name: value.detach().contiguous() for name, value in net.state_dict().items()}


def _check_folder(folder: Path) -> None:
    """Refuse to replace what is no saved network: a run has a config.json too."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a folder")
    there = [name for name in (CONFIG, WEIGHTS) if (folder / name).exists()]
    if not there:
        return
    try:
        ours = _read_config(folder)["format"] == _FORMAT
    except ValueError:
        ours = False
    if not ours:
        raise ValueError(
            f"{folder} holds another program's or a run's {there[0]}: save the network to a folder of its own"
        )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict) or config.get("format") != _FORMAT:
            raise ValueError(f"format is not {_FORMAT}")
        return config
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: {folder} holds no saved network") from None
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: BaseException) -> ValueError:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return ValueError(
        f"{path} does not say what a saved network's file must ({reason}): it is damaged or not of "
        "save_pretrained"
    )


def read_network(folder: Path, device: torch.device | str | None) -> nn.Sequential:
    """A saved network's modules with their weights, in training mode; nothing in the files is run.

    Args:
        folder: As `write_network` wrote it.
        device: Where the modules are put; None: the CPU.

    Returns:
        They run one after the other.

    Raises:
        ValueError: If a file is missing, damaged, or of another network than the other.
    """
    if (folder / "checkpoint.safetensors").exists() and not (folder / WEIGHTS).exists():
        raise ValueError(
            f"{folder} is the folder of a run: use spela.experiments.load_run({str(folder)!r}).net"
        )
    config = _read_config(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise ValueError(f"{path} is missing: {folder} holds no saved network")
    try:
        tensors, metadata = read_tensors(path, "pt")
    except (SafetensorError, OSError, UnicodeDecodeError, ValueError) as error:
        raise _unreadable(path, error) from None
    if metadata.get(_DIGEST, _digest(config)) != _digest(config):
        raise ValueError(
            f"{folder / CONFIG} describes another network than {WEIGHTS} belongs to: put the file back that "
            "was saved with it"
        )
    try:
        net = _built(config, tensors)
    except Exception as error:  # whatever constructors say of settings that come from anybody
        raise _unreadable(folder / CONFIG, error) from None
    found = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
    wanted = shapes_of(net)
    if found != wanted:
        name = min(name for name, _ in found.items() ^ wanted.items())
        raise _unreadable(
            path, ValueError(f"{name} is {found.get(name)}, {CONFIG} asks for {wanted.get(name)}")
        )
    net.to_empty(device=device or "cpu")
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:  # a table of groups that is none
        raise _unreadable(path, error) from None
    return net


def _built(config: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Sequential:
    modules = config["modules"]
    net = nn.Sequential(
        OrderedDict((name, build_module(m, tensors, f"{name}.")) for name, m in modules.items())
    )
    for name in config["frozen"]:
        net.get_parameter(name).requires_grad_(False)
    return net
