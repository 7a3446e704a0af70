"""What `make test-oldest` installs is what pyproject.toml promises."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_dependency_has_a_lowest_version_and_gets_it() -> None:
    text = subprocess.run(
        [sys.executable, ROOT / "tests" / "oldest.py"], capture_output=True, text=True, check=True
    ).stdout
    pinned = dict(line.split("==") for line in text.splitlines())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = (project["dependencies"], *project["optional-dependencies"].values())
    others = {line for group in groups for line in group if not line.startswith("torch-spela[")}
    assert len(others) == len(pinned)
    for line in others:
        name = re.split("[>=]=", line)[0]
        bound = line.removeprefix(name)[2:].split(";")[0].split(",")[0]
        assert pinned[name] == bound, line
        assert re.fullmatch(r"\d+(\.\d+)*", bound), line
