"""Finished runs as they are published: RESULTS/runs/EXPERIMENT.jsonl, a line a run, without weights.

A results folder may hold runs as folders, in archives, or both; `find_run` reads either.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from spela.files.atomic import write_atomically
from spela.training import RunFolder, read_evidence

__all__ = ["ArchivedRun", "find_run", "read_archives", "write_archive"]


class ArchivedRun(RunFolder):
    """A run out of an archive, which is read like a folder and has no checkpoint.

    Args:
        path: Where its folder would be.
        line: Its summary, whose settings are the run's, and its records.
    """

    def __init__(self, path: Path, line: dict[str, Any]) -> None:
        super().__init__(path)
        self._files = {self.config: line["summary"].get("config"), self.summary: line["summary"]}
        self._records: list[dict[str, Any]] = line["metrics"]

    def holds(self, file: Path) -> bool:
        """Whether the archive has one of the folder's files."""
        return file in self._files or file == self.metrics

    def read_json(self, path: Path) -> Any:
        """One JSON file of the folder."""
        if path not in self._files:
            raise ValueError(f"{path} is missing: {self.path.name} was published without it")
        return self._files[path]

    def read_metrics(self) -> list[dict[str, Any]]:
        """The records of the epochs, oldest first."""
        return list(self._records)


def find_run(runs: Path, key: str) -> RunFolder:
    """A run of a results folder: its own folder where that is there, else its line in an archive.

    Args:
        runs: The folder of runs.
        key: Name of the run.

    Returns:
        The run, which may not have been started.

    Raises:
        ValueError: If an archive is damaged.
    """
    path = runs / key
    if not path.exists():
        for lines in read_archives(runs).values():
            if key in lines:
                return ArchivedRun(path, lines[key])
    return RunFolder(path)


def read_archives(runs: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The lines of every archive, by experiment and run.

    Args:
        runs: The folder of runs, which need not be there.

    Raises:
        ValueError: If an archive is damaged.
    """
    found = {}
    for path in sorted(runs.glob("*.jsonl")):
        stat = path.stat()
        found[path.stem] = _read(path, stat.st_size, stat.st_mtime_ns)
    return found


@lru_cache(maxsize=64)
def _read(path: Path, size: int, changed: int) -> dict[str, dict[str, Any]]:
    """An archive's lines, cached by size and time of change, so that a changed file is read anew."""
    lines = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
            key, summary, metrics = line["run"], line["summary"], line["metrics"]
        except (ValueError, KeyError, TypeError, RecursionError):
            key = summary = metrics = None
        whole = isinstance(key, str) and isinstance(summary, dict) and isinstance(metrics, list)
        if not whole or not all(
            isinstance(r, dict) and type(r.get("epoch")) is int for r in metrics
        ):
            raise ValueError(f"{path}, line {number}: not a published run; put the file back")
        lines[key] = line
    return lines


def write_archive(path: Path, runs: list[RunFolder]) -> None:
    """Write finished runs to one file, by name; of a file of data its name, not where it lay.

    Args:
        path: The archive, made or replaced.
        runs: Each is checked before anything is written.

    Raises:
        ValueError: If a run is not finished, or its files disagree.
    """
    lines = []
    for run in sorted(runs, key=lambda run: run.path.name):
        evidence = read_evidence(run)
        if evidence.summary is None:
            raise ValueError(f"{run.path} is not finished: only finished runs are published")
        config = evidence.summary["config"]
        summary = evidence.summary | {"config": config | {"data": Path(config["data"]).name}}
        lines.append({"run": run.path.name, "summary": summary, "metrics": evidence.records})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
