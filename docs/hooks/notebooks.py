"""Notebooks become pages of the site as they stand, with the outputs that they were saved with."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

__all__ = ["on_files", "on_page_markdown"]


def on_files(files: Files, config: Any) -> Files:
    """Put a Markdown page and its pictures in the place of every notebook."""
    exporter = MarkdownExporter()
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        place = PurePosixPath(notebook.src_uri)
        text, found = exporter.from_filename(
            notebook.abs_src_path, resources={"unique_key": place.stem}
        )
        text = text.replace("![png](", "![What the code above draws](")
        files.remove(notebook)
        files.append(File.generated(config, str(place.with_suffix(".md")), content=text))
        for name, picture in found["outputs"].items():
            files.append(File.generated(config, str(place.parent / name), content=picture))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links that lead to notebooks in the repository lead to their pages."""
    return markdown.replace(".ipynb)", ".md)")
