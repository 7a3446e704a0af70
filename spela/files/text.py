"""Text out of files, which may come from anybody, for terminals and pages."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: object) -> str:
    """Text of a file as one line without control characters.

    Example:
        >>> printable("cat\\n\\x1b[2J")
        'cat??[2J'
    """
    return "".join(c if c.isprintable() else "?" for c in str(text))
