"""Command line of the compiler report: `python -m spela_kernels.aot --help`."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch
import triton

from spela_kernels.aot.compile import Row, compile_job
from spela_kernels.aot.jobs import Job, plan
from spela_kernels.aot.report import HEADER, failures, line
from spela_kernels.gpu.architectures import ARCHITECTURES
from spela_kernels.workers import check_workers

__all__ = ["main"]


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m spela_kernels.aot",
        description="Compile the Triton kernels for GPUs that are not there. Exit code 1 on a spill, "
        "a passed limit, or a matrix product without matrix instructions.",
    )
    parser.add_argument(
        "--all", action="store_true", help="every case, not a few (three hours of one core)"
    )
    parser.add_argument(
        "--targets", type=_names, default=tuple(ARCHITECTURES), metavar="A,B",
        help=f"of {', '.join(ARCHITECTURES)}",
    )  # fmt: skip
    parser.add_argument(
        "--kernels", type=_names, default=(), metavar="A,B", help="by function name"
    )
    parser.add_argument(
        "--cases", default="", metavar="TEXT", help="cases with this in their label"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    return parser


def _compiled(jobs: list[Job], processes: int) -> list[Row]:
    """Rows in the order of `jobs`, each printed as soon as it and those before it are there."""
    rows = []
    # spawn: a fork would copy torch's threads.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        try:
            print(HEADER, flush=True)
            for row in pool.map(compile_job, jobs):
                print(line(row), flush=True)
                rows.append(row)
        finally:
            pool.shutdown(cancel_futures=True)  # the rest is of no use to a reader who has left
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 if every row is good, 1 if one is not, 2 if the request is wrong."""
    given = _parser().parse_args(arguments)
    start = time.perf_counter()
    try:
        jobs = plan(given.targets, everything=given.all, kernels=given.kernels, cases=given.cases)
        if not jobs:
            raise ValueError(
                f"no case has {given.cases!r} in its label: leave --cases out to see them"
            )
        check_workers(given.jobs, "--jobs")
        if given.json is not None and not given.json.parent.is_dir():
            raise ValueError(f"--json {given.json}: the folder {given.json.parent} does not exist")
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = _compiled(jobs, min(given.jobs, len(jobs)))
    wrong = [
        f"{row.kernel} on {row.target} {what} ({row.label}, {row.num_warps} warps)"
        for row in rows
        for what in failures(row)
    ]
    seconds = time.perf_counter() - start
    targets = len({row.target for row in rows})
    print(f"{len(rows)} programs for {targets} targets in {seconds:.0f} s: {len(wrong)} failures")
    for failure in wrong:
        print(f"FAILED: {failure}", file=sys.stderr)
    if given.json is not None:
        report = {
            "triton": triton.__version__,
            "torch": torch.__version__,
            "seconds": round(seconds, 1),
            "failures": wrong,
            "rows": [asdict(row) for row in rows],
        }
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush
        status = 0
    sys.exit(status)
