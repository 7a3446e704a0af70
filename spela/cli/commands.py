"""The entry point: all commands by name, errors as a line and an exit code. Only this folder prints."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import typer

from spela.cli.benchmarks import bench
from spela.cli.console import INTERRUPTED, printing_anywhere
from spela.cli.exporting import export
from spela.cli.features import features
from spela.cli.options import Stopped
from spela.cli.parallel import may_speak
from spela.cli.reproduce import reproduce_command
from spela.cli.settings import check_environment
from spela.cli.trained import evaluate_command, info, predict
from spela.cli.training import demo, train
from spela.process import flush_denormals, keep_freed_memory
from spela.training import TrainingDivergedError

__all__ = ["app", "run"]

app = typer.Typer(
    help="Train neural networks without backpropagation (SPELA).",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate_command,
    "predict": predict,
    "export": export,
    "reproduce": reproduce_command,
    "features": features,
    "bench": bench,
    "info": info,
}


def _in_sound_surroundings(command: Callable[..., None]) -> Callable[..., None]:
    """A command that first checks the variables SPELA_*, so that a wrong one leaves no trace."""

    @functools.wraps(command)
    def checked(**options: Any) -> None:
        check_environment()
        command(**options)

    return checked


for name, command in _COMMANDS.items():
    app.command(name=name)(_in_sound_surroundings(command))


def run() -> None:
    """Run the command line; every foreseen error is one line on stderr and exit code 2."""
    keep_freed_memory()
    with printing_anywhere():
        sys.exit(_run(sys.argv[1:] or ["--help"]))


def _run(arguments: list[str]) -> int:
    """The exit code of a call."""
    try:
        with flush_denormals():
            code = app(args=arguments, standalone_mode=False)
    except typer.TyperException as error:
        return _failed(error.format_message())
    except Stopped as how:
        return _stopped(str(how))
    except (typer.Abort, KeyboardInterrupt):
        return _stopped()
    except TrainingDivergedError as error:
        return _failed(str(error))
    except (ValueError, TypeError, OSError) as error:
        return _failed(str(error) or type(error).__name__)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return _failed(
            f"not enough memory: choose smaller sizes ({' '.join(str(error).split()) or 'MemoryError'})"
        )
    return _stopped() if code == INTERRUPTED else code or 0  # typer's answer to Ctrl-C is a code


def _is_out_of_memory(error: BaseException) -> bool:
    """torch says so in a RuntimeError on the CPU, and where a size passes 2^63 bytes."""
    said = (
        "can't allocate memory",
        "not enough memory",
        "out of memory",
        "size calculation overflowed",
    )
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


def _stopped(how_to_go_on: str = "") -> int:
    if may_speak():
        below_a_bar = "\n" if sys.stderr.isatty() else ""
        line = f"stopped, {how_to_go_on}" if how_to_go_on else "stopped"
        typer.echo(below_a_bar + line, err=True)
    return INTERRUPTED


def _failed(message: str) -> int:
    if may_speak():
        typer.echo(f"spela: error: {' '.join(message.split())}", err=True)
    return 2
