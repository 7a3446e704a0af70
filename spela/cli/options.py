"""What several commands share: options, and what is done with them. Help imports it, and so no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch

__all__ = [
    "COMPUTING",
    "DATA",
    "Backend",
    "DataRoot",
    "Device",
    "Json",
    "RunDir",
    "Stopped",
    "Threads",
    "chosen_backend",
    "going_on",
    "not_empty",
    "number_in",
    "one_of",
    "parse_path",
    "path_option",
    "pick_device",
    "print_json",
    "refuse_unread",
    "set_threads",
]

# Headings of help.
DATA = "Data"
COMPUTING = "Computing"


def parse_path(text: str | Path) -> Path:
    """A path of the command line."""
    if not str(text):  # would be taken for the current folder
        raise typer.BadParameter("it is empty: name a folder or file")
    return Path(os.path.expanduser(text))  # shells leave the ~ of --out=~/runs as it is


def not_empty(name: str | None) -> str | None:
    """A name of the command line; an empty one, as of a variable that is not set, means nothing."""
    if name == "":
        raise typer.BadParameter("it is empty: name one, or leave the option out")
    return name


def path_option(*names: str, help: str, panel: str | None = None) -> Any:
    """An option that is a path; an empty one is refused."""
    return typer.Option(*names, help=help, parser=parse_path, metavar="PATH", rich_help_panel=panel)


def number_in(least: float, most: float, *, help: str, panel: str | None = None) -> Any:
    """An option that is a number in a range, whose ends help need not show."""

    def check(value: float | None) -> float | None:
        if value is not None and not least <= value <= most:  # so NaN too
            raise typer.BadParameter(f"it must be {least:g} to {most:g}, got {value:g}")
        return value

    return typer.Option(help=help, callback=check, rich_help_panel=panel)


def one_of(
    names: Sequence[str], *flags: str, help: str, panel: str | None = None, more: str = ""
) -> Any:
    """An option that is a name: help lists those there are, and shells complete them.

    Args:
        names: The names.
        flags: Of the option, where it is not called as its parameter.
        help: What the name decides.
        panel: Heading that help shows it under.
        more: What else the option takes.
    """

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return typer.Option(
        *flags,
        help=f"{help}: {', '.join(names)}{more}.",
        autocompletion=complete,
        callback=not_empty,
        metavar="NAME",
        rich_help_panel=panel,
    )


DataRoot = Annotated[
    Path | None,
    path_option(
        help="Folder that datasets are in, or are downloaded to (default: the variable "
        "SPELA_DATA_ROOT, else ~/.cache/spela/data).",
        panel=DATA,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        help="Number of CPU threads (default: torch's choice).", rich_help_panel=COMPUTING
    ),
]
Backend = Annotated[
    str | None,
    typer.Option(
        help="Kernel back-end: auto, or one that `spela info` lists (default: the variable "
        "SPELA_BACKEND, else auto).",
        metavar="NAME",
        rich_help_panel=COMPUTING,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="Device to compute on: auto (a GPU where there is one), cpu, cuda, cuda:1, ...",
        metavar="NAME",
        rich_help_panel=COMPUTING,
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON instead of text; shares are 0 to 1.")
]
RunDir = Annotated[
    Path,
    typer.Argument(
        help="Folder of a training run: what its --out was.", parser=parse_path, metavar="RUN_DIR"
    ),
]


def refuse_unread(what: str, **options: object) -> None:
    """Refuse options that a call would not read, whose value would seem to count; None: not given."""
    for name, value in options.items():
        if value is not None:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} is not for {what}: leave it out")


def print_json(facts: object) -> None:
    """One JSON document, the same on a console of any encoding."""
    typer.echo(json.dumps(facts, indent=2, allow_nan=False))


class Stopped(Exception):
    """Ctrl-C in a command whose work can go on; the message says how."""


@contextmanager
def going_on(how: Callable[[], str]) -> Iterator[None]:
    """Let Ctrl-C end the command with a line on how to go on; empty: there is no such way."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(how()) from None


@contextmanager
def chosen_backend(name: str | None) -> Iterator[None]:
    """Compute on the back-end of --backend; None, where it is not given: what SPELA_BACKEND says."""
    from spela_kernels import use_backend

    if name is None:
        yield
        return
    with use_backend(name):
        yield


def pick_device(name: str) -> torch.device:
    """The named device; auto: a GPU where there is one.

    ValueError where it cannot be used, or not by the back-end that is chosen.
    """
    import torch

    from spela_kernels import select_backend

    if name == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        try:
            device = torch.device(name)
        except RuntimeError:  # a list of all that torch was ever ported to
            raise ValueError(
                f"there is no device {name!r}: use auto, cpu, cuda or cuda:1, ..., or mps"
            ) from None
        try:
            torch.zeros(1, device=device).item()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0].split(". ")[0]
            raise ValueError(f"device {name!r} cannot be used here: {reason}") from None
    select_backend(device)
    return device


def set_threads(number: int | None) -> None:
    """What --threads says; None leaves torch's choice. ValueError for more than the machine can start."""
    import torch

    from spela_kernels.workers import check_workers

    if number is not None:
        torch.set_num_threads(check_workers(number, "--threads"))
