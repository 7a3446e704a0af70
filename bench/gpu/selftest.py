"""Part `selftest`: what the self-test that every user of a GPU may run checks and measures."""

from __future__ import annotations

from collections.abc import Sequence

from bench.gpu.rows import Rows
from bench.gpu.setting import Setting
from spela_kernels import selftest
from spela_kernels.backend import use_backend

__all__ = ["measure"]

_AT_ONCE = 10  # cases that make a row


def _add(rows: Rows, what: str, found: Sequence[selftest.Row]) -> int:
    """A row for all that passed, one for each figure and each failure; how many failed."""
    checks = [row for row in found if row.passed is not None]
    passed = sum(bool(row.passed) for row in checks)
    if checks:
        rows.add("self-test", check=what, result=f"{passed} of {len(checks)} passed")
    for row in found:
        if not row.passed:
            result = "measured" if row.passed is None else "FAIL"
            rows.add("self-test", check=row.name, result=result, figures=row.detail)
    return len(checks) - passed


def measure(rows: Rows, setting: Setting) -> None:
    """Launches, parity case by case, and figures, which have most to compile; a failure fails the part."""
    device, quick, failed = setting.device, setting.dry_run, 0
    with use_backend("triton"):
        failed += _add(rows, "launches", selftest.launch_rows(device)[: setting.pick(None, 1)])
    for op in selftest.SUITES:
        cases = list(selftest.selected_cases(op, not setting.dry_run, quick).items())
        for start in range(0, len(cases), _AT_ONCE):
            some = dict(cases[start : start + _AT_ONCE][: setting.pick(None, 1)])
            found = selftest.parity_rows(some, device)
            failed += _add(rows, f"parity {op} from {next(iter(some))}", found)
    if not setting.dry_run:  # its meters are of a GPU alone
        with use_backend("triton"):
            failed += _add(rows, "memory", selftest.gpu_rows(quick))
    if failed:
        raise SystemExit(f"{failed} checks failed")
