"""`python -m spela`, and so `torchrun --nproc-per-node 2 -m spela train --parallel data ...`."""

from spela.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
