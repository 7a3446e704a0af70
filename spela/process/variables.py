"""An environment variable that a library reads, set while it does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["variable_set"]


@contextmanager
def variable_set(name: str, value: str) -> Iterator[None]:
    """The environment variable has this value inside, and afterwards what it had before.

    Args:
        name: Of the variable.
        value: While the block runs, for every thread of the process.

    Example:
        >>> with variable_set("SPELA_EXAMPLE", "1"):
        ...     os.environ["SPELA_EXAMPLE"]
        '1'
        >>> "SPELA_EXAMPLE" in os.environ
        False
    """
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
