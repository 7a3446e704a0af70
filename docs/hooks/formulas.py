"""Formulas in `math` fences become MathML when the site is built: browsers draw it without a script."""

from __future__ import annotations

from typing import Any

from latex2mathml.converter import convert

__all__ = ["on_config"]


def _mathml(source: str, *_: Any, **__: Any) -> str:
    return f'<div class="formula">{convert(source, display="block")}</div>'


def on_config(config: Any) -> Any:
    """Tell the Markdown extension that reads fences what to do with formulas."""
    fence = {"name": "math", "class": "math", "format": _mathml}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config
