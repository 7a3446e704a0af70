"""What a part finds, written row by row: a part that is killed keeps the rows it had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["Rows", "has_failed", "read_rows"]

_FAILED = "failed: "


class Rows:
    """Appends rows of tables and notes to a file of JSON lines.

    Args:
        path: The file; its folder is there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rows = Rows(Path(folder) / "a.jsonl")
        ...     rows.add("sizes", layer="784-1024", us=1.5)
        ...     read_rows(rows.path)
        sizes  layer 784-1024  us 1.5
        [{'table': 'sizes', 'layer': '784-1024', 'us': 1.5}]
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, table: str, **cells: Any) -> None:
        """One row of a table; it is also printed, for the part's log."""
        self._write({"table": table, **cells})
        print(
            f"{table}  " + "  ".join(f"{name} {value}" for name, value in cells.items()), flush=True
        )

    def failed(self, table: str, error: Exception, **cells: Any) -> None:
        """A row that says why it has no figures: one rival's failure is not the end of a table."""
        first = (str(error).splitlines() or [""])[0]
        self.add(table, **cells, note=f"{_FAILED}{type(error).__name__}: {first[:200]}")

    def note(self, text: str) -> None:
        """A sentence for the report."""
        self._write({"note": text})
        print(text, flush=True)

    def _write(self, row: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def has_failed(row: dict[str, Any]) -> bool:
    """Whether a row is of `Rows.failed`."""
    return str(row.get("note", "")).startswith(_FAILED)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; of one that was killed while it wrote, the whole ones.

    Args:
        path: As given to `Rows`; it may not be there.
    """
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
