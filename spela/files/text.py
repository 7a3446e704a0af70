"""Text for messages: what came out of files, which may be anybody's, and what a name may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean", "printable"]


def printable(text: object) -> str:
    """Text of a file as one line without control characters.

    Example:
        >>> printable("cat\\n\\x1b[2J")
        'cat??[2J'
    """
    return "".join(c if c.isprintable() else "?" for c in str(text))


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A question about the likeliest of the known names, with a space behind it; empty where none is like it.

    Example:
        >>> did_you_mean("mnsit", ["mnist", "digits"])
        "did you mean 'mnist'? "
    """
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"did you mean {close[0]!r}? " if close else ""
