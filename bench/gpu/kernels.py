"""The ops' kernels alone, for tools that watch them: `python -m bench.gpu.kernels {proof,table} ...`.

No clock, no graph, no torch.compile. `proof` runs parity cases whole, forward, gradients and step; `table`
takes one step of each case of the table of counters.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

import torch

from spela_kernels.linear import parity as linear
from spela_kernels.projection import parity as projection
from spela_kernels.proof.parity import Case
from spela_kernels.selftest import SUITES

__all__ = ["TABLE", "main", "proof_cases"]

# Sizes at which bytes mean something, of every kernel.
TABLE: dict[str, Case] = {
    "linear 784-1024 b50": linear.LARGE["paper-784-1024"],
    "linear 1024-1024 b512": linear.Case((512, 1024, 1024, 10), "log", "leaky_relu"),
    "linear 1024-1024 b512 softmax": linear.Case((512, 1024, 1024, 100), "softmax", "leaky_relu"),
    "projection 13x13": projection.LARGE["authors-13x13"],
    "projection 13x13 softmax": projection.LARGE["authors-13x13-softmax"],
    "projection 30x30": projection.LARGE["authors-30x30"],
}


def proof_cases(op: str) -> dict[str, Case]:
    """An op's parity cases, those first that between them take every path through its kernels.

    Example:
        >>> list(proof_cases("linear"))[:2]
        ['ones', 'primes-no-bias']
    """
    suite = SUITES[op]
    first = {name: suite.CASES[name] for name in suite.QUICK}
    return first | suite.CASES


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cases, a line each.

    Args:
        arguments: Of the command line; None: the process's.
    """
    parser = argparse.ArgumentParser("python -m bench.gpu.kernels", description=__doc__)
    parser.add_argument("what", choices=("proof", "table"))
    parser.add_argument("--op", choices=SUITES, default="linear", help="for proof")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--first", type=int, help="only so many cases")
    options = parser.parse_args(arguments)
    cases = TABLE if options.what == "table" else proof_cases(options.op)
    for name, case in list(cases.items())[: options.first]:
        if options.what == "table":
            case.fused_step(options.device)()
        else:
            backend = import_module(f"spela_kernels.{case.op}.triton_backend")
            case.run(backend, case.dtype, options.device)
        if options.device != "cpu":
            torch.cuda.synchronize()
        print(f"case {name} done", flush=True)


if __name__ == "__main__":
    main()
