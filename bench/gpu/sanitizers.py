"""Part `sanitizers`: memcheck and racecheck over every kernel, where compute-sanitizer is."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from bench.gpu.processes import Command, run_together
from bench.gpu.rows import Rows
from bench.gpu.setting import Setting
from spela_kernels.proof.parity import OPS

__all__ = ["findings", "measure"]

_ROOT = Path(__file__).resolve().parents[2]
_LIMIT = 200.0  # of each, side by side; the part's own is a little longer
_ERROR = re.compile(
    r"^=+ (?:Invalid|Out-of-range|Misaligned|Error|Warning: Race|Race|Program hit).*$", re.M
)
# A driver's call that answers with an error, as one that asks whether a pointer is the GPU's, is no fault of
# a kernel; a launch that fails raises in Python besides.
_OPTIONS = {"memcheck": ["--report-api-errors", "no"], "racecheck": []}
_SUMMARY = re.compile(r"^=+ (?:ERROR|RACECHECK) SUMMARY:.*$", re.M)


def findings(log: str) -> tuple[int, list[str], str]:
    """Cases that were run, lines of errors, and the tool's last word (empty where it was killed before).

    Example:
        >>> text = "case ones done\\n========= Invalid __global__ write of size 4\\n"
        >>> findings(text + "========= ERROR SUMMARY: 1 error\\n")
        (1, ['Invalid __global__ write of size 4'], 'ERROR SUMMARY: 1 error')
    """
    found = _SUMMARY.findall(log)
    errors = [line.lstrip("= ") for line in _ERROR.findall(log)]
    return (
        len(re.findall(r"^case .* done$", log, re.M)),
        errors,
        found[-1].lstrip("= ") if found else "",
    )


def measure(rows: Rows, setting: Setting) -> None:
    """Each tool over each op, in processes side by side; an error fails the part."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        rows.note("compute-sanitizer is not on this machine: no memcheck and no racecheck.")
        if not setting.dry_run:
            return
    # Without the caching allocator each tensor is an allocation of its own: a step past its end is seen.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    own = [sys.executable, "-m", "bench.gpu.kernels", "proof", "--device", setting.device]
    if setting.dry_run:  # the command that the tool would watch, once and alone
        jobs = {("no tool", "linear"): [*own, "--op", "linear", "--first", "1"]}
    else:
        watch = [str(tool), "--error-exitcode", "9", "--tool"]
        jobs = {
            (check, op): [*watch, check, *options, *own, "--op", op]
            for check, options in _OPTIONS.items()
            for op in OPS
        }
    commands = {
        f"{check} {op}": Command(
            arguments,
            _LIMIT,
            setting.folder / f"{check}-{op}.log".replace(" ", "-"),
            environment,
            _ROOT,
        )
        for (check, op), arguments in jobs.items()
    }
    bad = 0
    for name, outcome in run_together(commands).items():
        log = commands[name].log.read_text(encoding="utf-8", errors="replace")
        cases, errors, summary = findings(log)
        # Out of time is no error: what ran was clean.
        failed = bool(errors) or not (outcome.status == "ok" or "limit" in outcome.status)
        bad += failed
        rows.add(
            "sanitizers", check=name, cases=cases, errors=len(errors), ended=outcome.status,
            summary=summary, first_error=errors[0] if errors else "",
        )  # fmt: skip
        if failed:
            print(outcome.tail)
    if bad:
        raise SystemExit(f"{bad} of {len(commands)} checks found errors or did not run")
