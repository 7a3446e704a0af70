"""What several commands share: options, the choice of a device, the progress bar, accuracies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tqdm import tqdm

from spela_kernels import select_backend, use_backend
from spela_kernels.workers import check_workers

__all__ = [
    "Backend",
    "DataRoot",
    "Device",
    "ProgressBar",
    "RunDir",
    "Stopped",
    "Threads",
    "chosen_backend",
    "going_on",
    "parse_path",
    "path_option",
    "pick_device",
    "print_accuracy",
    "print_batch_statistics",
    "print_top5",
    "refuse_unread",
    "set_threads",
]


def parse_path(text: str | Path) -> Path:
    """A path of the command line."""
    if not str(text):  # would be taken for the current folder
        raise typer.BadParameter("it is empty: name a folder or file")
    return Path(text)


def path_option(*names: str, help: str) -> Any:
    """An option that is a path; an empty one is refused."""
    return typer.Option(*names, help=help, parser=parse_path, metavar="PATH")


DataRoot = Annotated[
    Path | None,
    path_option(help="Where datasets are, or are downloaded to (default: SPELA_DATA_ROOT)."),
]
Threads = Annotated[int | None, typer.Option(help="CPU threads (default: torch's choice).")]
Backend = Annotated[
    str | None,
    typer.Option(
        help="Kernel back-end: auto, or a name that `spela info` lists (default: SPELA_BACKEND)."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
RunDir = Annotated[
    Path, typer.Argument(help="Folder of a run.", parser=parse_path, metavar="RUN_DIR")
]


def refuse_unread(what: str, **options: object) -> None:
    """Refuse options that a call would not read, whose value would seem to count; None: not given."""
    for name, value in options.items():
        if value is not None:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} is not for {what}: leave it out")


class Stopped(Exception):
    """Ctrl-C in a command whose work can go on; the message says how."""


class ProgressBar:
    """Draws the loop's progress: a bar on a terminal, and one line an epoch anywhere."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None
        self.epochs = 0

    def on_epoch_start(self, epoch: int, epochs: int, steps: int) -> None:
        self.epochs = epochs
        self.bar = tqdm(
            total=steps, desc=f"epoch {epoch}/{epochs}", unit="step", leave=False, disable=None
        )

    def on_progress(self, steps_done: int, losses: list[float]) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str("loss " + " ".join(f"{v:.3f}" for v in losses), refresh=False)
            self.bar.update(steps_done - self.bar.n)

    def on_epoch_end(self, record: dict[str, Any]) -> None:
        if self.bar is not None:
            self.bar.close()
        accuracy = " ".join(f"{100 * a:5.2f}" for a in record["test_accuracy"])
        loss = " ".join(f"{v:.4f}" for v in record["train_loss"])
        epoch = f"epoch {record['epoch']}/{self.epochs}"
        typer.echo(f"{epoch}  accuracy % {accuracy}  loss {loss}  {record['seconds']:.1f} s")


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
    if name is None:
        yield
        return
    with use_backend(name):
        yield


def pick_device(name: str) -> torch.device:
    """The named device; auto: a GPU where there is one.

    ValueError where it cannot be used, or not by the back-end that is chosen.
    """
    if name == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        try:
            device = torch.device(name)
            torch.zeros(1, device=device).item()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0].split(". ")[0]
            raise ValueError(f"device {name!r} cannot be used here: {reason}") from None
    select_backend(device)
    return device


def set_threads(number: int | None) -> None:
    """What --threads says; None leaves torch's choice. ValueError for more than the machine can start."""
    if number is not None:
        torch.set_num_threads(check_workers(number, "--threads"))


def print_accuracy(accuracy: list[float], vote: float) -> None:
    """One line a layer, in percent, and one for the vote of all."""
    for layer, value in enumerate(accuracy, start=1):
        typer.echo(f"layer {layer}: {100 * value:.2f} %")
    if len(accuracy) > 1:
        typer.echo(f"all layers' mean score: {100 * vote:.2f} %")


def print_top5(accuracy: list[float] | None) -> None:
    """One line: how often the class is among each layer's five best, if there are more classes."""
    if accuracy is not None:
        shares = ", ".join(f"{100 * share:.2f} %" for share in accuracy)
        typer.echo(f"class among the five best, by layer: {shares}")


def print_batch_statistics(accuracy: list[float] | None) -> None:
    """One line on what batch norm with each test batch's own statistics gives, if there is one."""
    if accuracy is not None:
        shares = ", ".join(f"{100 * share:.2f} %" for share in accuracy)
        typer.echo(f"with each test batch's own statistics in batch norm: {shares}")
