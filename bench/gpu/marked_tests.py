"""Part `tests`: every test marked gpu, by pytest on many processes, to which this file is a plugin as well.

The plugin writes each outcome as it comes: pytest's own results come last, and one that is killed has none.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.gpu.rows import Rows, read_rows
from bench.gpu.setting import Setting

__all__ = [
    "marked_files",
    "measure",
    "outcomes",
    "pytest_collectreport",
    "pytest_runtest_logreport",
]

_ROOT = Path(__file__).resolve().parents[2]
_MARK = re.compile(r"mark\.gpu|from tests\.devices import|on_a_gpu import")
_FILE = "BENCH_GPU_OUTCOMES"  # names the plugin's file
_OTHERS = 8  # cores that are left to what runs beside


def marked_files() -> list[str]:
    """The files with tests marked gpu, from the root of the tree.

    Importing all others takes longer than running these, and needs packages that a GPU's machine may lack.
    """
    files = sorted((_ROOT / "tests").rglob("test_*.py"))
    return [str(f.relative_to(_ROOT)) for f in files if _MARK.search(f.read_text(encoding="utf-8"))]


def _note(outcome: str, report: Any) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ or _FILE not in os.environ:
        return  # the process that has sent the workers is told of theirs
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(report.longrepr) if crash is None else crash.message
    first = next(filter(None, map(str.strip, text.splitlines())), outcome)
    Rows(Path(os.environ[_FILE])).add(outcome, test=report.nodeid, message=first)


def pytest_runtest_logreport(report: Any) -> None:
    """Called by pytest behind each phase of each test."""
    if report.failed:
        _note("failure" if report.when == "call" else "error", report)
    elif report.skipped or report.when == "call":
        _note(report.outcome, report)


def pytest_collectreport(report: Any) -> None:
    """Called by pytest behind each file that it has read."""
    if report.failed:
        _note("error", report)


def outcomes(found: Path) -> tuple[Counter[str], list[tuple[str, str]]]:
    """How many tests passed, failed and were skipped, and each failure with its first line.

    Args:
        found: What the plugin has written; it may not be there.
    """
    rows = read_rows(found)
    failures = [(r["test"], r["message"]) for r in rows if r["table"] in ("failure", "error")]
    return Counter(row["table"] for row in rows), failures


def measure(rows: Rows, setting: Setting) -> None:
    """Run them; a failure is a row, and fails the part."""
    found = setting.folder / "outcomes.jsonl"
    found.unlink(missing_ok=True)
    files = setting.pick(marked_files(), ["tests/spela/data/test_batches.py"])
    command = [
        sys.executable,
        "-m",
        "pytest",
        *files,
        "-m",
        "gpu",
        "-k",
        "not speed",
        "-rf",
        "--tb=short",
    ]
    command += ["-o", "addopts=", "--import-mode=importlib", "-p", "no:cacheprovider", "-q"]
    # A file that needs a package which this machine lacks is one failure.
    command += ["--continue-on-collection-errors", "-p", "bench.gpu.marked_tests"]
    if find_spec("xdist") is None:
        rows.note("pytest-xdist is not installed: one process runs the tests.")
    else:
        workers = setting.pick(max(1, (os.cpu_count() or 1) - _OTHERS), 0)
        command += ["-n", str(workers), "--dist", "worksteal"]
    # This process may be a worker's; the one that it starts is none.
    environment = {n: v for n, v in os.environ.items() if not n.startswith("PYTEST_XDIST")}
    environment[_FILE] = str(found)
    try:
        code = subprocess.run(command, cwd=_ROOT, env=environment, check=False).returncode
    finally:  # also where the part is asked to end
        counts, failures = outcomes(found)
        rows.add("tests", **{k: counts[k] for k in ("passed", "failure", "error", "skipped")})
        for name, message in failures:
            rows.add("failures", test=name, message=message)
    if failures or code != 0:
        raise SystemExit(f"pytest ended with {code}, {len(failures)} failures")
