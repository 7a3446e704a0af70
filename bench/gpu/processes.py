"""Commands with a limit, side by side: one that takes too long is killed with all it started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Command", "Outcome", "run_together"]

_GRACE = 2.0  # seconds from asking a process to end to killing it
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


def run_together(commands: Mapping[str, Command]) -> dict[str, Outcome]:
    """Run commands side by side until each has ended or reached its limit.

    Args:
        commands: By name.

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
                _end(running.pop(name))
                status = _status(code, command.limit)
                done[name] = Outcome(status, seconds, _tail(command.log, command.folder))
            time.sleep(_POLL)
    finally:
        for process in running.values():
            _end(process)
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


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a process's session; one that has ended may have left children."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            break
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _tail(log: Path, folder: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace").replace(str(folder), ".")
    lines = text.splitlines(keepends=True)[-_TAIL_LINES:]
    return "".join(lines)[-_TAIL_CHARACTERS:]
