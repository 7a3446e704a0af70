"""The command line's reference, written from the commands themselves when the site is built."""

from __future__ import annotations

import re
from typing import Any

import typer
from typer.cli import get_docs_for_click

from spela.cli.commands import app

__all__ = ["command_reference", "on_page_markdown"]

PLACE = "<!-- commands -->"


def command_reference() -> str:
    """Every command with its arguments and options, as Markdown below a page's title."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="spela")
    # A help text shows its examples as indented lines.
    text = re.sub(r"\nExamples:\n((?:  .+\n)+)", r"\n**Examples**:\n\n```bash\n\1```\n", text)
    text = re.sub(r"^  (spela .*)$", r"\1", text, flags=re.MULTILINE)
    _, *commands = text.split("\n## ")
    return "".join(f"\n## {command}" for command in commands)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the reference where a page asks for it."""
    return markdown.replace(PLACE, command_reference()) if PLACE in markdown else markdown
