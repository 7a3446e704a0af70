"""Every public name has a docstring and a place in the API reference; else a strict build fails."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.plugins import get_plugin_logger
from mkdocstrings import Inventory

import spela

__all__ = ["missing_names", "on_post_build"]

# The command line has a reference of its own, and `choices` has its names for the help.
_NOT_IMPORTED_BY_USERS = ("__main__", "choices", "cli")
_log = get_plugin_logger("public_names")


def _public() -> dict[str, str]:
    """What `__all__` names in the front doors and in each room of `spela`, and where it is defined."""
    rooms = [
        f"spela.{room.name}"
        for room in pkgutil.iter_modules(spela.__path__)
        if room.name not in _NOT_IMPORTED_BY_USERS
    ]
    found = {}
    for door in ("spela", *rooms, "spela_kernels"):
        module = import_module(door)
        for name in module.__all__:
            value = getattr(module, name)
            if not isinstance(value, ModuleType):  # whose own names are looked at
                home = getattr(value, "__module__", door)
                found[f"{door}.{name}"] = f"{home}.{getattr(value, '__qualname__', name)}"
    return found


def missing_names(inventory: Path) -> list[str]:
    """The public names that a built site's inventory does not have.

    Args:
        inventory: The site's objects.inv.
    """
    with inventory.open("rb") as file:
        documented = Inventory.parse_sphinx(file)
    # A function called like its module (`spela.convert`) is there by the name of its definition alone.
    return [name for name, home in _public().items() if not {name, home} & documented.keys()]


def on_post_build(config: Any) -> None:
    """A warning for each missing name, which ends a strict build."""
    for name in missing_names(Path(config.site_dir) / "objects.inv"):
        _log.warning("%s has no docstring, or no place in docs/reference/api", name)
