"""Pages from the templates beside this file."""

from __future__ import annotations

from typing import Any

import jinja2

__all__ = ["render"]


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
