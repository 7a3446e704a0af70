"""Class names as a picture can show them: they are a user's own, in any script."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.font_manager import FontProperties, findfont, get_font

__all__ = ["drawable"]


def drawable(names: Sequence[str]) -> list[str]:
    """Each name, or the number of its class where the pictures' font lacks one of its characters.

    Dollar signs are escaped, between which matplotlib would read a formula. Where a class is called by
    another's number, that gets a # in front.

    Args:
        names: C class names.

    Example:
        >>> drawable(["cat", "\\u732b", "$5"])
        ['cat', '1', '\\\\$5']
    """
    font = get_font(findfont(FontProperties()))
    return [
        name.replace("$", r"\$")
        if all(font.get_char_index(ord(character)) for character in name)
        else "#" * (str(index) in names) + str(index)
        for index, name in enumerate(names)
    ]
