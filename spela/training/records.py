"""The run folder: what is in it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spela.files.atomic import remove_leftovers, write_atomically
from spela.files.text import printable
from spela.training.lock import LOCK_FILE, only_writer

__all__ = ["RunFolder"]


def _is_of_run(config: Path) -> bool:
    """Whether settings are a run's, which a start that failed leaves, and not some other config.json."""
    try:
        return {"recipe", "data", "method"} <= json.loads(config.read_text(encoding="utf-8")).keys()
    except (OSError, ValueError, AttributeError):
        return False


class RunFolder:
    """Files of one run: config.json, checkpoint.safetensors, metrics.jsonl, summary.json, report.html.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self.report = self.path / "report.html"
        self.files = (self.config, self.checkpoint, self.metrics, self.summary, self.report)

    def holds(self, file: Path) -> bool:
        """Whether one of the folder's files is there."""
        return file.exists()

    def holds_run(self) -> bool:
        """Whether a run was started here; settings alone are what a start that failed leaves."""
        return any(file.exists() for file in (self.checkpoint, self.metrics))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the folder's only writer: it is made if missing, and removed again if nothing is written.

        Raises:
            InUseError: If another process is writing to it.
            ValueError: If it is a file.
            OSError: If it cannot be made or written to.
        """
        with only_writer(
            self.path,
            f"another process is writing to {self.path}: wait until it ends, or choose another --out",
        ):
            for file in self.files:
                remove_leftovers(self.path, file.name)
            remove_leftovers(self.path / "plots")
            yield

    def check_free(self) -> None:
        """Refuse a folder that a new run would change something in.

        Raises:
            ValueError: If it holds a run, or files that no run left there, or is a file, or its name is no
                UTF-8.
        """
        if self.holds_run():
            raise ValueError(
                f"{self.path} already holds a run: continue it with --resume, or choose another --out"
            )
        try:
            os.fspath(self.path).encode()
        except UnicodeEncodeError:  # safetensors could not read there what it has written
            raise ValueError(
                f"{printable(self.path)} is no name in UTF-8: choose another --out"
            ) from None
        if not self.path.exists():
            return
        if not self.path.is_dir():  # said before the data are read; `writing` would say the same
            raise ValueError(f"{self.path} is a file: give --out a folder")
        for file in sorted(self.path.iterdir()):
            # A lock, and what other programs hide in every folder: no file of a run has such a name.
            hidden = file.name.startswith(".")
            if not hidden and not (file == self.config and _is_of_run(file)):
                raise ValueError(
                    f"{self.path} holds {file.name} and no run: choose a new folder for --out"
                )

    def create(self, config: dict[str, Any]) -> None:
        """Make the folder of a new run, where `writing` has not, and write its config.

        Raises:
            ValueError: As `check_free`.
        """
        self.check_free()
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_json(self.config, config)

    def clear(self) -> None:
        """Remove all that is in the folder, except for the lock that its writer holds."""
        for path in self.path.iterdir():
            if path.name == LOCK_FILE:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def write_json(self, path: Path, value: Any) -> None:
        """Write one JSON file of this folder, whole or not at all."""
        write_atomically(path, json.dumps(value, indent=2) + "\n")

    def remove_summary(self) -> None:
        """Remove summary.json, which says that the run is finished."""
        self.summary.unlink(missing_ok=True)

    def read_json(self, path: Path) -> Any:
        """Read one JSON file of this folder.

        Raises:
            ValueError: If it is missing or not JSON.
        """
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{path} is missing: {self.path} holds no run") from None
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is not valid JSON ({error}): the file is damaged") from None

    def read_metrics(self) -> list[dict[str, Any]]:
        """The records of the epochs done, oldest first; a torn last line (a killed run) is left out."""
        if not self.holds(self.metrics):
            return []
        records = []
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                break
            if not isinstance(record, dict) or type(record.get("epoch")) is not int:
                break
            records.append(record)
        return records

    def keep_metrics(self, epochs: int) -> None:
        """Drop records of epochs after the first `epochs`: the checkpoint does not know them.

        Raises:
            ValueError: If one of the first `epochs` has no record.
        """
        kept = [record for record in self.read_metrics() if record["epoch"] <= epochs]
        if [record["epoch"] for record in kept] != list(range(1, epochs + 1)):
            raise ValueError(
                f"{self.metrics} has lost records of the {epochs} epochs done: the run cannot be continued; "
                "start it again in another --out"
            )
        write_atomically(self.metrics, "".join(json.dumps(record) + "\n" for record in kept))

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())  # on the disk before the checkpoint that counts on it
