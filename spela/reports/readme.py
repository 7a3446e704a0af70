"""The main table in a README, between two markers."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from spela.experiments.plan import Options
from spela.experiments.registry import EXPERIMENTS
from spela.experiments.tables import read_tables
from spela.reports.cells import cells, change_text
from spela.reports.rendering import write_bytes

__all__ = ["check_readme", "main_table", "update_readme"]

BEGIN = "<!-- results:begin -->"
END = "<!-- results:end -->"
_HEADER = (
    "| experiment | row | data | epochs | seeds | layers, % | published (measured*), % | difference "
    "| ahead of rival |",
    "|---|---|---|---|---|---|---|---|---|",
)


def main_table(tables: list[dict[str, Any]], before: str = "") -> str:
    """The rows every experiment declares as its main ones, as Markdown.

    Args:
        tables: From `read_tables`.
        before: The table so far. Its rows that `tables` has no figures of stay as they are, and so do those
            of more seeds or with a rival where ours has none, so that results of several machines and
            folders come together; rows that are not among the main ones are dropped.

    Returns:
        Lines without a final newline, in the registry's order. Rows without figures are left out: the
        report says why.
    """
    lines = {_key(line): line for line in before.splitlines() if line.startswith("| ")}
    for line in _lines(tables):
        if not _says_more(lines.get(_key(line), ""), line):
            lines[_key(line)] = line
    places = {name: place for place, name in enumerate(_main_rows())}
    kept = [line for key, line in lines.items() if key[:2] in places]
    return "\n".join([*_HEADER, *sorted(kept, key=lambda line: places[_key(line)[:2]])])


def _key(line: str) -> tuple[str, str, str]:
    """Experiment, row and data of a line."""
    _, experiment, row, data, *_ = (part.strip() for part in f"{line}||||".split("|"))
    return experiment, row, data


def _says_more(line: str, than: str) -> bool:
    """Whether a line is of more seeds than another, or has a rival where the other has none."""
    (seeds, rival), (other_seeds, other_rival) = map(_seeds_and_rival, (line, than))
    return seeds > other_seeds or (bool(rival) and not other_rival)


def _seeds_and_rival(line: str) -> tuple[int, str]:
    parts = [part.strip() for part in line.split("|")]
    whole = len(parts) == len(_HEADER[1].split("|")) and parts[5].isdigit()
    return (int(parts[5]), parts[9]) if whole else (0, "")


def _main_rows() -> list[tuple[str, str]]:
    """What may stand in the table: experiment and row, in order; what was calibrated comes last."""
    names = []
    for name, experiment in EXPERIMENTS.items():
        main = [
            row.name
            for row in experiment.rows
            if any(fnmatchcase(row.name, pattern) for pattern in experiment.main)
        ]
        names += [(name, row) for row in main]
        if experiment.measure == "exits":
            names += [(name, f"{row}, calibrated") for row in main]
    return names


def _lines(tables: list[dict[str, Any]]) -> list[str]:
    lines = []
    for table in tables:
        for row in table["rows"]:
            if "accuracy" not in row:
                continue
            name, data, epochs, seeds, layers, _, _, published, difference, rival, ahead, *_ = (
                cells(row)
            )
            against = f"{ahead} ({rival})" if ahead else ""
            values = (name, data, epochs, seeds, layers, published, difference, against)
            lines.append(f"| {table['experiment']} | " + " | ".join(values) + " |")
        lines += _exit_summary(table)
    return lines


def check_readme(path: Path, options: Options) -> None:
    """Whether a file can take the main table: before runs that take hours.

    Args:
        path: A text file that holds both markers, each once.
        options: Where the results are.

    Raises:
        ValueError: If the file or a marker is missing, or the results are quick ones.
    """
    _parts(path, options)


def update_readme(path: Path, options: Options, names: list[str]) -> None:
    """Bring the main table between the markers of a file up to date; rows without figures here stay.

    Args:
        path: A text file that holds both markers, each once.
        options: Where the results are.
        names: Of the experiments whose tables were rebuilt from their runs: a table that only lies there
            proves nothing.

    Raises:
        ValueError: As `check_readme`, or if there are no results.
    """
    before, table, after = _parts(path, options)
    tables = read_tables(options, names)
    if not tables:
        raise ValueError(f"{options.folder} holds no table: run `spela reproduce NAME` first")
    content = f"{before}\n{main_table(tables, table)}\n{after}".encode()
    write_bytes(path, content)


def _parts(path: Path, options: Options) -> tuple[str, str, str]:
    """What is before the table, the table, and what is after it."""
    if options.quick:
        raise ValueError("--quick makes no results: leave --readme out")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text: {error}") from None
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise ValueError(
            f"{path} must hold {BEGIN} and then {END}, each once: put them where the table goes"
        )
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return text[:start], text[start:end], text[end:]


def _exit_summary(table: dict[str, Any]) -> list[str]:
    lines = []
    calibrated = table["measured"].get("calibrated", [])
    for row, data in dict.fromkeys((c["row"], c["data"]) for c in calibrated):
        mine = [c for c in calibrated if (c["row"], c["data"]) == (row, data)]
        count = len(mine)
        lost = sum(c["accuracy"] - c["full_accuracy"] for c in mine) / count
        saved = change_text(1 - sum(c["multiply_adds"] for c in mine) / count, "fewer", "more")
        time = change_text(
            1 - sum(c["early_ms"] / c["full_ms"] for c in mine) / count, "less", "more"
        )
        what = f"{saved} multiply-adds, {time} time, {lost:+.2f} points"
        lines.append(
            f"| {table['experiment']} | {row}, calibrated | {data} | | {count} | {what} | | | |"
        )
    return lines
