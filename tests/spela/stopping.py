"""Runs that are stopped on their way: a process by a signal, one in this process before an epoch."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from spela.training import Trainer


def stopped(
    command: list[str],
    ready: Callable[[int], bool],
    how: int = signal.SIGINT,
    send: Callable[[int, int], None] = os.kill,
    **options: Any,
) -> tuple[int, str]:
    """Exit code and stderr of a command that gets a signal as soon as `ready` says so of its pid."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores Ctrl-C, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )
    deadline = time.monotonic() + 300
    while not ready(process.pid):
        assert time.monotonic() < deadline
        assert process.poll() is None, "ended before it could be stopped"
        time.sleep(0.01)
    send(process.pid, how)
    _, error = process.communicate(timeout=600)
    return process.returncode, error


def stop_before_epoch(patch: pytest.MonkeyPatch, stop: int) -> None:
    """Ctrl-C comes as a trainer of this process begins the epoch `stop`, counted from 0."""
    run_epoch = Trainer.run_epoch

    def stops(self: Trainer, epoch: int) -> dict[str, Any]:
        if epoch == stop:
            raise KeyboardInterrupt
        return run_epoch(self, epoch)

    patch.setattr(Trainer, "run_epoch", stops)
