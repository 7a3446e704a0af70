"""Prints the oldest versions that pyproject.toml admits, as constraints: `make test-oldest` installs them."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def oldest_versions() -> dict[str, str]:
    """Every package that pyproject.toml names, at its lowest bound."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    named = (re.match(r"([\w-]+)(?:[>=]=([\w.]+))?", line) for group in groups for line in group)
    return {found[1]: found[2] for found in named if found and found[1] != project["name"]}


if __name__ == "__main__":
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in oldest_versions().items())
