"""The commands, and how their errors look. Only this folder prints or exits."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from spela.allocator import keep_freed_memory
from spela.cli.benchmarks import bench
from spela.cli.exporting import export
from spela.cli.features import features
from spela.cli.parallel import may_speak
from spela.cli.reproduce import reproduce_command
from spela.cli.trained import evaluate_command, info, predict
from spela.cli.training import demo, train
from spela.denormals import flush_denormals
from spela.training import TrainingDivergedError

__all__ = ["app", "main"]

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
for name, command in _COMMANDS.items():
    app.command(name=name)(command)


def main() -> None:
    """Run the command line; every foreseen error is one line on stderr and exit code 2."""
    keep_freed_memory()
    try:
        with flush_denormals():
            code = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
    except typer.TyperException as error:
        _fail(error.format_message())
    except (typer.Abort, KeyboardInterrupt):
        if may_speak():
            message = "\nstopped: the same command goes on (`spela train`: with --resume)"
            typer.echo(message, err=True)
        sys.exit(130)
    except TrainingDivergedError as error:
        _fail(str(error))
    except (ValueError, TypeError, OSError) as error:
        _fail(str(error) or type(error).__name__)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _fail(
            f"not enough memory: choose smaller sizes ({' '.join(str(error).split()) or 'MemoryError'})"
        )
    sys.exit(code or 0)


def _is_out_of_memory(error: BaseException) -> bool:
    """torch says so in a RuntimeError on the CPU, and where a size passes 2^63 bytes."""
    said = (
        "can't allocate memory",
        "not enough memory",
        "out of memory",
        "size calculation overflowed",
    )
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


def _fail(message: str) -> None:
    if may_speak():
        # A file name on the command line need not be text.
        line = " ".join(message.split()).encode("utf-8", "backslashreplace").decode()
        typer.echo(f"spela: error: {line}", err=True)
    sys.exit(2)
