"""From a results folder to a published one: its tables, and the records of their runs, without weights."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from spela.experiments.archive import find_run, read_archives, write_archive
from spela.experiments.plan import Options
from spela.experiments.registry import EXPERIMENTS
from spela.experiments.reproduce import rebuild
from spela.experiments.runner import writing_results
from spela.experiments.tables import read_tables

__all__ = ["check_target", "publish"]


def check_target(options: Options, target: Path) -> None:
    """Refuse a folder that a results folder cannot be published to: before its runs, which may take days.

    Args:
        options: Where the results are.
        target: The published folder, which need not be there.

    Raises:
        ValueError: If it is a file or the results folder.
    """
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file: give --publish a folder")
    if target.resolve() == options.out.resolve():
        raise ValueError(f"{target} holds the results themselves: publish to another folder")


def publish(options: Options, target: Path) -> Options:
    """Add a results folder's finished runs to a published one, and make its tables anew.

    A run that several experiments share is in the file of the first that shows it.

    Args:
        options: Where the results are, with which seeds and data.
        target: The published folder; what it has of other runs stays.

    Returns:
        The options of the published folder.

    Raises:
        ValueError: If a run's files disagree, or an archive is damaged; or as `check_target`.
    """
    check_target(options, target)
    published = replace(options, out=target)
    runs, kept = options.folder / "runs", published.folder / "runs"
    tables = {table["experiment"]: table for table in read_tables(options, list(EXPERIMENTS))}
    with writing_results(published):
        archived = read_archives(kept)
        taken: set[str] = set()
        for name in EXPERIMENTS:
            before = archived.get(name, {})
            shown = {
                key for row in tables.get(name, {"rows": []})["rows"] for key in row["finished"]
            }
            found = [find_run(runs, key) for key in shown - taken]
            found += [find_run(kept, key) for key in before.keys() - shown - taken]
            if found:
                write_archive(kept / f"{name}.jsonl", found)
            taken |= shown | before.keys()
        for name, table in tables.items():
            earlier = read_tables(published, [name])
            before = earlier[0]["measured"] if earlier else {}
            rebuild(EXPERIMENTS[name], published, _measured(before, table["measured"]))
        # Drawn from weights, which are not published.
        for drawn in (options.folder / "plots").glob("layers-*.png"):
            (published.folder / "plots").mkdir(exist_ok=True)
            shutil.copyfile(drawn, published.folder / "plots" / drawn.name)
    return published


def _measured(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What was measured, of one run after the other where its entries name runs, and else as a whole.

    Runs are published without weights: what is lost of them is not measured again.
    """
    if "points" not in found:
        return before or found
    anew = {entry.get("run") for entry in found["points"]}
    joined = dict(found)
    for part in ("points", "calibrated"):
        kept = [entry for entry in before.get(part, []) if entry.get("run") not in anew]
        if part in found:
            joined[part] = kept + found[part]
    return joined
