"""CONTRIBUTING and CHANGELOG, which lie beside the docs in the repository, are pages of the site too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

__all__ = ["on_files", "on_page_markdown"]

_ROOT = Path(__file__).parents[2]
_PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: Any) -> Files:
    """Add the two files."""
    for name, page in _PAGES.items():
        content = (_ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=re.sub(r"\]\(docs/", "](", content)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links that lead to the two files in the repository lead to their pages."""
    for name, page in _PAGES.items():
        markdown = re.sub(rf"\]\(((?:\.\./)*)\.\./{re.escape(name)}", rf"](\1{page}", markdown)
    return markdown
