"""A figure and its deviation stay on one line of a table's cell."""

from __future__ import annotations

from typing import Any

__all__ = ["on_page_markdown"]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Spaces around ± do not break."""
    return markdown.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
