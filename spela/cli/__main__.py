"""`python -m spela.cli`, the same as `python -m spela`."""

from spela.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
