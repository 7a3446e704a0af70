"""The entry point: all commands by name, errors as a line and an exit code. Only this folder prints."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

import spela
from spela.cli.benchmarks import bench
from spela.cli.console import INTERRUPTED, printing_anywhere
from spela.cli.examples import EXAMPLES, START, shown
from spela.cli.exporting import export
from spela.cli.features import features
from spela.cli.info import info
from spela.cli.options import Stopped
from spela.cli.parallel import may_speak
from spela.cli.reproduce import reproduce_command
from spela.cli.trained import evaluate_command, predict
from spela.cli.training import demo, train
from spela.files.text import printable

__all__ = ["app", "run"]

app = typer.Typer(
    epilog=shown(START),
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
# By the heading that help shows them under.
_COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "Train": {"demo": demo, "train": train, "features": features},
    "Use a trained network": {
        "evaluate": evaluate_command,
        "predict": predict,
        "export": export,
        "info": info,
    },
    "Measure": {"reproduce": reproduce_command, "bench": bench},
}


def _in_sound_surroundings(command: Callable[..., None]) -> Callable[..., None]:
    """A command in a process set for training; it first checks the variables SPELA_*, so that a wrong one
    leaves no trace."""

    @functools.wraps(command)
    def checked(**options: Any) -> None:
        from spela.process import calm_threads, flush_denormals, keep_freed_memory, limit_threads

        calm_threads()  # before torch is imported
        from spela.cli.settings import check_environment

        keep_freed_memory()
        limit_threads()
        with flush_denormals():
            check_environment()
            command(**options)

    return checked


for heading, commands in _COMMANDS.items():
    for name, command in commands.items():
        app.command(name=name, epilog=shown(EXAMPLES[name]), rich_help_panel=heading)(
            _in_sound_surroundings(command)
        )


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"spela {spela.__version__}")
        raise typer.Exit


@app.callback()
def _front(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Train neural networks without backpropagation: every layer of SPELA learns on its own."""


def run() -> None:
    """Run the command line; every foreseen error is one line on stderr and exit code 2.

    Other exceptions, such as a TypeError, are faults of the program and keep their traceback.
    """
    with printing_anywhere():
        sys.exit(_run(sys.argv[1:] or ["--help"]))


def _run(arguments: list[str]) -> int:
    """The exit code of a call."""
    try:
        code = app(args=arguments, standalone_mode=False)
    except typer.TyperException as error:
        return _failed(error.format_message())
    except Stopped as how:
        return _stopped(str(how))
    except (typer.Abort, KeyboardInterrupt):
        return _stopped()
    except (ValueError, OSError) as error:
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
        typer.echo(f"spela: error: {printable(' '.join(message.split()))}", err=True)
    return 2
