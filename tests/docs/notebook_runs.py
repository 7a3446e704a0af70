"""Runs the tutorials' notebooks; as a program it saves them with what they put out: `make notebooks`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))


def executed(path: Path, folder: Path) -> Any:
    """A notebook run from top to bottom in a fresh process, whose files go to `folder`.

    Raises:
        CellExecutionError: If one of its cells fails.
    """
    notebook = nbformat.read(path, as_version=4)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,  # else prints may stand apart, as they happened to arrive
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment)
    # What a reader of the page does not need, and what differs from machine to machine.
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def main() -> None:
    """Save every notebook with its outputs."""
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(executed(path, Path(folder)), path)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
