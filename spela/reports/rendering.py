"""Pages from the templates beside this file, and writing a file whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from spela.files.atomic import write_atomically

__all__ = ["render", "write_bytes"]


def render(template: str, **context: Any) -> bytes:
    """A page, UTF-8.

    Args:
        template: A file of `templates`; what HTML shows is escaped.
        **context: The template's variables.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("spela.reports"),
        autoescape=template.endswith("html"),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(context).encode()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    write_atomically(path, lambda name: Path(name).write_bytes(content))
