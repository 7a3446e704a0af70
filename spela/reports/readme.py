"""The main table in a page of the docs and its headline rows in a README, each between two markers."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from spela.experiments.plan import Options
from spela.experiments.registry import EXPERIMENTS
from spela.experiments.tables import read_tables
from spela.files.atomic import write_atomically
from spela.reports.cells import cells, change_text

__all__ = ["MAIN", "SUMMARY", "check_pages", "main_table", "summary_table", "update_pages"]

MAIN = ("<!-- results:begin -->", "<!-- results:end -->")
SUMMARY = ("<!-- summary:begin -->", "<!-- summary:end -->")
_HEADER = (
    "| experiment | row | data | epochs | seeds | layers, % | all layers, % | published (measured*), % "
    "| difference | ahead of rival |",
    "|---|---|---|---|---|---|---|---|---|---|",
)
# Behind the seeds of a row that only the page has.
_UNRECORDED = "†"
_SUMMARY_HEADER = (
    "| experiment: row | data | each layer, % | together, % | published, % | backprop, % | ahead, points |",
    "|---|---|---|---|---|---|---|",
)


def main_table(tables: list[dict[str, Any]], before: str = "") -> str:
    """The rows every experiment declares as its main ones, as Markdown.

    Args:
        tables: From `read_tables`.
        before: The table so far. Its rows that `tables` has no figures of stay, and so do those of more
            seeds, so that results of several machines and folders come together; a dagger behind their seeds
            says that the experiment's table does not have them. A row whose rival only the table so far has
            names it, with a dagger, and no difference. Rows that are not among the main ones are dropped.

    Returns:
        Lines without a final newline, in the registry's order. Rows without figures are left out: the
        report says why.
    """
    lines = {_key(line): line for line in before.splitlines() if line.startswith("| ")}
    read = {table["experiment"] for table in tables}
    lines = {key: _marked(line) if key[0] in read else line for key, line in lines.items()}
    for line in _lines(tables):
        known = lines.get(_key(line), "")
        if _seeds_and_rival(known)[0] <= _seeds_and_rival(line)[0]:
            lines[_key(line)] = _with_rival_of(known, line)
    places = {name: place for place, name in enumerate(_main_rows())}
    kept = [line for key, line in lines.items() if key[:2] in places]
    return "\n".join([*_HEADER, *sorted(kept, key=lambda line: places[_key(line)[:2]])])


def summary_table(table: str) -> str:
    """The rows of the main table that every experiment declares as its headline, with fewer figures.

    Args:
        table: From `main_table`.

    Returns:
        Lines without a final newline, in the order that they are declared in. Of the layers only the last
        keeps its deviation; of the differences to the rival, which is backprop, the last layer's stays.

    Example:
        >>> line = "| mlp | best | mnist | 20 | 3 | 98.2 ± 0.1 / 98.7 ± 0.2 | 98.7 | | | +0.1 (backprop 98) |"
        >>> print(summary_table(line).splitlines()[2])
        | mlp: best | mnist, 20 epochs, 3 seeds | 98.2 / 98.7 ± 0.2 | 98.7 |  | 98 | +0.1 |
    """
    lines = {_key(line): line for line in table.splitlines()}
    chosen = [(name, *pair) for name, found in EXPERIMENTS.items() for pair in found.headline]
    shown = [_summary_line(lines[key]) for key in chosen if key in lines]
    return "\n".join([*_SUMMARY_HEADER, *shown])


def _summary_line(line: str) -> str:
    _, experiment, row, data, epochs, seeds, layers, vote, published, _, ahead, _ = (
        part.strip() for part in line.split("|")
    )
    counts = [(epochs, "epoch"), (seeds, "seed")]
    settings = [f"{n} {unit}{'s' * (n != '1')}" for n, unit in counts if n]
    *first, last = layers.split(" / ")
    means = [layer.split(" ± ")[0] for layer in first]
    difference, _, rival = ahead.rpartition("(")
    values = (
        f"{experiment}: {row}",
        ", ".join([data, *settings]),
        " / ".join([*means, last]),
        vote,
        published,
        rival.rstrip(")").rpartition(" ")[2],
        re.sub(r", all layers \S+( ± \S+)?", "", difference).strip(),
    )
    return "| " + " | ".join(values) + " |"


def _key(line: str) -> tuple[str, str, str]:
    """Experiment, row and data of a line."""
    _, experiment, row, data, *_ = (part.strip() for part in f"{line}||||".split("|"))
    return experiment, row, data


def _marked(line: str) -> str:
    parts = line.split("|")
    if len(parts) <= 5:  # no line of ours
        return line
    parts[5] = f" {parts[5].strip().rstrip(_UNRECORDED)}{_UNRECORDED} "
    return "|".join(parts)


def _with_rival_of(known: str, line: str) -> str:
    """A line with the rival's name and accuracy of an older one where it has none of its own."""
    rival = _seeds_and_rival(known)[1]
    if not rival or _seeds_and_rival(line)[1]:
        return line
    named = rival[rival.index("(") :].rstrip(f"){_UNRECORDED}")
    parts = line.split("|")
    parts[10] = f" {named}{_UNRECORDED}) "
    return "|".join(parts)


def _seeds_and_rival(line: str) -> tuple[int, str]:
    parts = [part.strip() for part in line.split("|")]
    seeds = parts[5].rstrip(_UNRECORDED) if len(parts) == len(_HEADER[1].split("|")) else ""
    return (int(seeds), parts[10]) if seeds.isdigit() else (0, "")


def _main_rows() -> list[tuple[str, str]]:
    """What may stand in the main table: experiment and row, in order; what was calibrated comes last."""
    names = []
    for name, experiment in EXPERIMENTS.items():
        rows = [row.name for row in experiment.rows]
        if experiment.measure == "exits":
            rows += [f"{row}, calibrated" for row in rows]
        names += [(name, row) for row in rows if any(fnmatchcase(row, p) for p in experiment.main)]
    return names


def _lines(tables: list[dict[str, Any]]) -> list[str]:
    lines = []
    for table in tables:
        for row in table["rows"]:
            if "accuracy" not in row:
                continue
            name, data, epochs, seeds, layers, vote, _, published, difference, rival, ahead, *_ = (
                cells(row)
            )
            against = f"{ahead} ({rival})" if ahead else ""
            values = (name, data, epochs, seeds, layers, vote, published, difference, against)
            lines.append(f"| {table['experiment']} | " + " | ".join(values) + " |")
        lines += _exit_summary(table)
    return lines


def check_pages(page: Path, readme: Path | None, options: Options) -> None:
    """Whether files can take the two tables: before runs that take hours.

    Args:
        page: A text file that holds both markers of the main table, each once.
        readme: The same for the headline rows; None: they are not asked for.
        options: Where the results are.

    Raises:
        ValueError: If a file or a marker is missing, or the results are quick ones.
    """
    if options.quick:
        raise ValueError("--quick makes no results: leave --page and --readme out")
    _parts(page, MAIN)
    if readme is not None:
        _parts(readme, SUMMARY)


def update_pages(page: Path, readme: Path | None, options: Options, names: list[str]) -> None:
    """Bring the tables between the markers of two files up to date; rows without figures here stay.

    Args:
        page: As in `check_pages`; the main table is written there.
        readme: As in `check_pages`; its headline rows are written there.
        options: Where the results are.
        names: Of the experiments whose tables were rebuilt from their runs: a table that only lies there
            proves nothing.

    Raises:
        ValueError: As `check_pages`, or if there are no results.
    """
    check_pages(page, readme, options)
    tables = read_tables(options, names)
    if not tables:
        raise ValueError(f"{options.folder} holds no table: run `spela reproduce NAME` first")
    _, before, _ = _parts(page, MAIN)
    table = main_table(tables, before)
    _write(page, MAIN, table)
    if readme is not None:
        _write(readme, SUMMARY, summary_table(table))


def _write(path: Path, markers: tuple[str, str], table: str) -> None:
    before, _, after = _parts(path, markers)
    write_atomically(path, f"{before}\n{table}\n{after}".encode())


def _parts(path: Path, markers: tuple[str, str]) -> tuple[str, str, str]:
    """What is before the table, the table, and what is after it."""
    begin, end = markers
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text: {error}") from None
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
        raise ValueError(
            f"{path} must hold {begin} and then {end}, each once: put them where the table goes"
        )
    first, last = text.index(begin) + len(begin), text.index(end)
    return text[:first], text[first:last], text[last:]


def _exit_summary(table: dict[str, Any]) -> list[str]:
    lines = []
    halves = table["measured"].get("halves", [])
    for row, data in dict.fromkeys((c["row"], c["data"]) for c in halves):
        mine = [c for c in halves if (c["row"], c["data"]) == (row, data)]
        count = len(mine)
        lost = sum(c["accuracy"] - c["full_accuracy"] for c in mine) / count
        saved = change_text(1 - sum(c["multiply_adds"] for c in mine) / count, "fewer", "more")
        time = change_text(1 - sum(c["ms"] / c["full_ms"] for c in mine) / count, "less", "more")
        what = f"{saved} multiply-adds, {time} time, {lost:+.2f} points"
        lines.append(
            f"| {table['experiment']} | {row}, calibrated | {data} | | {count} | {what} | | | | |"
        )
    return lines
