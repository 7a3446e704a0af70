"""Part `tests`: every test marked gpu, by pytest on many processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

from bench.gpu.rows import Rows
from bench.gpu.setting import Setting

__all__ = ["marked_files", "measure", "outcomes"]

_ROOT = Path(__file__).resolve().parents[2]
_MARK = re.compile(r"mark\.gpu|from tests\.devices import|on_a_gpu import")
_OTHERS = 8  # cores that are left to what runs beside


def marked_files() -> list[str]:
    """The files with tests marked gpu, from the root of the tree.

    Importing all others takes longer than running these, and needs packages that a GPU's machine may lack.
    """
    files = sorted((_ROOT / "tests").rglob("test_*.py"))
    return [str(f.relative_to(_ROOT)) for f in files if _MARK.search(f.read_text(encoding="utf-8"))]


def outcomes(junit: Path) -> tuple[Counter[str], list[tuple[str, str]]]:
    """How many tests passed, failed and were skipped, and each failure with its first line.

    Args:
        junit: pytest's --junitxml.
    """
    counts: Counter[str] = Counter()
    failures = []
    for case in ElementTree.parse(junit).getroot().iter("testcase"):
        kinds = {child.tag: child for child in case}
        kind = next((k for k in ("failure", "error", "skipped") if k in kinds), "passed")
        counts[kind] += 1
        if kind in ("failure", "error"):
            message = (kinds[kind].get("message") or "").strip().splitlines()
            name = f"{case.get('classname')}.{case.get('name')}"
            failures.append((name, message[0] if message else kind))
    return counts, failures


def measure(rows: Rows, setting: Setting) -> None:
    """Run them; a failure is a row, and fails the part."""
    junit = setting.folder / "tests.xml"
    junit.unlink(missing_ok=True)
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
    command += ["--continue-on-collection-errors", "--junitxml", str(junit)]
    if find_spec("xdist") is None:
        rows.note("pytest-xdist is not installed: one process runs the tests.")
    else:
        workers = setting.pick(max(1, (os.cpu_count() or 1) - _OTHERS), 0)
        command += ["-n", str(workers), "--dist", "worksteal"]
    code = subprocess.run(command, cwd=_ROOT, check=False).returncode
    if not junit.is_file():
        raise SystemExit(f"pytest ended with {code} and left no result")
    counts, failures = outcomes(junit)
    rows.add("tests", **{k: counts[k] for k in ("passed", "failure", "error", "skipped")})
    for name, message in failures:
        rows.add("failures", test=name, message=message)
    if failures or code != 0:
        raise SystemExit(f"pytest ended with {code}, {len(failures)} failures")
