"""`python -m bench.gpu --out DIR`: everything that only a GPU can say, in ten minutes, from a source tree.

Tests, self-test, tables of steps, trainings, memory, sanitizers and counters: each part has a process and
a limit of its own and may fail alone. DIR gets `report.md`, `report.json` and the logs. `--dry-run` runs
every part's code without a GPU, on the CPU or in Triton's interpreter, at the smallest size.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from bench.gpu.parts import PARTS, Part, chosen_waves
from bench.gpu.processes import Command, Outcome, end_on_request, run_together
from bench.gpu.report import Finding, write_report
from bench.gpu.rows import Rows, read_rows
from bench.gpu.setting import Setting

__all__ = ["main"]

_ROOT = Path(__file__).resolve().parents[2]
_MINUTES = 10.0
_GRACE = 10.0  # seconds for a part to end what it has started itself
_DRY_TIMES = 5  # longer are the limits of a dry run: a busy machine is no reason to fail


def _environment(part: Part, dry_run: bool) -> dict[str, str]:
    """Of a part's process: this tree first; in a dry run no GPU, one thread, and kernels interpreted."""
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    own = {"PYTHONPATH": path}
    if dry_run:
        own |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        own["TRITON_INTERPRET"] = "1" if part.interpreted else "0"
    return {**os.environ, **own}


def _command(part: Part, limit: float, setting: Setting) -> Command:
    arguments = [
        sys.executable,
        "-m",
        "bench.gpu",
        "--out",
        str(setting.folder),
        "--inside",
        part.name,
    ]
    if setting.dry_run:
        arguments.append("--dry-run")
    if setting.data_root is not None:
        arguments += ["--data-root", str(setting.data_root)]
    limit = min(limit, part.limit * setting.pick(1, _DRY_TIMES))
    log = setting.folder / f"{part.name}.log"
    return Command(arguments, limit, log, _environment(part, setting.dry_run), _ROOT)


def _run_inside(name: str, setting: Setting) -> None:
    """A part, in the process that was started for it."""
    end_on_request()
    module, function = PARTS[name].call.split(":")
    measure = getattr(import_module(module), function)
    rows = Rows(setting.folder / f"{name}.jsonl")
    if not (setting.dry_run and "torch" in sys.modules):
        measure(rows, setting)
        return
    # Not at the top: it imports torch, which some parts leave to processes of their own.
    from bench.gpu.stand_in import cuda_on_the_cpu

    with cuda_on_the_cpu():
        measure(rows, setting)


def _campaign(waves: list[list[Part]], out: Path, setting: Setting, seconds: float) -> bool:
    """Run the waves, writing the report after each; whether all parts ended well."""
    end, findings = time.monotonic() + seconds, []
    for wave in waves:
        left = end - time.monotonic()
        for part in wave:
            (setting.folder / f"{part.name}.jsonl").unlink(missing_ok=True)
        if left > 1:
            print(f"{', '.join(part.name for part in wave)} ...", flush=True)
            commands = {part.name: _command(part, left, setting) for part in wave}
            outcomes = run_together(commands, _GRACE)
        else:
            outcomes = {part.name: Outcome("not started: no time left", 0.0, "") for part in wave}
        for part in wave:
            rows = read_rows(setting.folder / f"{part.name}.jsonl")
            findings.append(Finding(part, outcomes[part.name], rows))
            print(f"{part.name}: {outcomes[part.name].status}, {len(rows)} rows", flush=True)
        write_report(findings, setting.dry_run, out)
    return all(finding.outcome.status == "ok" for finding in findings)


def _checked(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[list[Part]]:
    try:
        waves = chosen_waves(options.part)
    except ValueError as error:
        parser.error(str(error))
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"--out {options.out} is a file: name a folder")
    if options.data_root is not None and not options.data_root.is_dir():
        parser.error(f"--data-root {options.data_root}: there is no such folder")
    if find_spec("torch") is None:
        parser.error("torch is not installed")
    if not options.dry_run and not import_module("torch").cuda.is_available():
        parser.error("torch sees no GPU: run this where it does, or try it with --dry-run")
    return waves


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign.

    Args:
        arguments: Of the command line; None: the process's own.

    Returns:
        0: every part ended well; 1: the report says which did not.
    """
    parser = argparse.ArgumentParser("python -m bench.gpu", description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the report and the logs"
    )
    parser.add_argument(
        "--part", action="append", metavar="NAME", help=f"only this: {', '.join(PARTS)}"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="without a GPU, at the smallest size"
    )
    parser.add_argument("--minutes", type=float, default=_MINUTES, help="for all parts together")
    parser.add_argument("--data-root", type=Path, help="where Fashion-MNIST is, if not where usual")
    parser.add_argument("--inside", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.inside:
        _run_inside(options.inside, Setting(options.dry_run, options.out, options.data_root))
        return 0
    waves = _checked(parser, options)
    data_root = None if options.data_root is None else options.data_root.resolve()
    setting = Setting(options.dry_run, options.out.resolve() / "logs", data_root)
    setting.folder.mkdir(parents=True, exist_ok=True)
    seconds = 60 * options.minutes * setting.pick(1, _DRY_TIMES)
    good = _campaign(waves, options.out, setting, seconds)
    print(f"{options.out / 'report.md'}, {options.out / 'report.json'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
