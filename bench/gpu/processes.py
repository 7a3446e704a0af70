"""Commands with a limit, side by side: one that takes too long is killed with all it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Command", "Outcome", "end_on_request", "run_together"]

_GRACE = 2.0  # seconds from asking processes to end to killing them
_POLL = 0.05
_TAIL_LINES, _TAIL_CHARACTERS = 40, 4000


@dataclass(frozen=True)
class Command:
    """What to run.

    Attributes:
        arguments: Program and arguments.
        limit: Seconds.
        log: File for its output.
        environment: Of the process.
        folder: Where it runs.
    """

    arguments: list[str]
    limit: float
    log: Path
    environment: Mapping[str, str]
    folder: Path


@dataclass(frozen=True)
class Outcome:
    """How it ended.

    Attributes:
        status: ok, exit N, signal N, or killed after its limit.
        seconds: It took.
        tail: The end of what it printed.
    """

    status: str
    seconds: float
    tail: str


def run_together(commands: Mapping[str, Command], grace: float = _GRACE) -> dict[str, Outcome]:
    """Run commands side by side until each has ended or reached its limit.

    Args:
        commands: By name.
        grace: Seconds that a process has to end by itself. One that runs others by this function
            (`end_on_request`) needs more than they have.

    Returns:
        How each ended. None of their processes is left, also where this is interrupted.

    Example:
        >>> import sys, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     code, log = "print('ready'); import time; time.sleep(60)", Path(folder) / "log"
        ...     command = Command([sys.executable, "-c", code], 2.0, log, os.environ, Path(folder))
        ...     outcome = run_together({"a": command})["a"]
        >>> outcome.status, outcome.tail
        ('killed after its limit of 2 s', 'ready\\n')
    """
    running: dict[str, subprocess.Popen[bytes]] = {}
    started, done = time.monotonic(), {}
    try:
        for name, command in commands.items():
            running[name] = _start(command)
        while running:
            for name, process in list(running.items()):
                command, seconds = commands[name], time.monotonic() - started
                code = process.poll()
                if code is None and seconds < command.limit:
                    continue
                _end([running.pop(name)], grace)
                status = _status(code, command.limit)
                done[name] = Outcome(status, seconds, _tail(command.log, command.folder))
            time.sleep(_POLL)
    finally:
        _end(running.values(), grace)
    return {name: done[name] for name in commands}


def _start(command: Command) -> subprocess.Popen[bytes]:
    with command.log.open("wb") as log:
        return subprocess.Popen(
            command.arguments,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**command.environment, "PYTHONUNBUFFERED": "1"},
            cwd=command.folder,
            start_new_session=True,  # its children are killed with it
        )


def _status(code: int | None, limit: float) -> str:
    if code is None:
        return f"killed after its limit of {limit:.0f} s"
    if code == 0:
        return "ok"
    return f"exit {code}" if code > 0 else f"signal {-code}"


def _end(processes: Iterable[subprocess.Popen[bytes]], grace: float) -> None:
    """End what is left of processes' sessions; one that has ended may have left children."""
    processes = list(processes)
    for how in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, how)
        end = time.monotonic() + grace
        while time.monotonic() < end and any(process.poll() is None for process in processes):
            time.sleep(_POLL)
    for process in processes:
        process.wait()


def end_on_request() -> None:
    """Let this process end by an exception when it is asked to, so that `run_together` ends its own first."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def _tail(log: Path, folder: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace").replace(str(folder), ".")
    lines = text.splitlines(keepends=True)[-_TAIL_LINES:]
    return "".join(lines)[-_TAIL_CHARACTERS:]
