"""The command line `spela`: its commands and options, and everything that the library prints."""

from __future__ import annotations

import sys

from spela.cli.console import INTERRUPTED

__all__ = ["main"]


def main() -> None:
    """Run the command line; Ctrl-C while it is imported is no traceback either."""
    try:
        from spela.cli.commands import run
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
    run()
