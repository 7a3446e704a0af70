"""From finished runs to a table: mean and deviation over seeds beside the published figure and the rival."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from spela.data import dataset_names
from spela.experiments.declare import LAST, Experiment, Figure, Range, Row
from spela.experiments.plan import Job, Options, data_label, row_config, run_key
from spela.experiments.runner import finished_summary, run_folder
from spela.files.atomic import write_atomically
from spela.training import RunConfig, RunFolder

__all__ = [
    "build_table",
    "mean_and_deviation",
    "picture_path",
    "read_tables",
    "table_path",
    "with_kept",
    "write_table",
]

_logger = logging.getLogger(__name__)

_FORMAT = "spela-table-3"


def mean_and_deviation(values: list[float]) -> dict[str, float | int | None]:
    """Mean and sample standard deviation (n - 1); of one value there is no deviation.

    Example:
        >>> mean_and_deviation([1.0, 3.0])
        {'mean': 2.0, 'sd': 1.4142135623730951, 'n': 2}
    """
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": deviation, "n": len(values)}


def table_path(options: Options, name: str) -> Path:
    """Where an experiment's table is kept."""
    return options.folder / f"{name}.json"


def picture_path(options: Options, key: str) -> Path:
    """Where the picture of a run's layers is kept."""
    return options.folder / "plots" / f"layers-{key}.png"


def build_table(experiment: Experiment, options: Options, jobs: list[Job]) -> dict[str, Any]:
    """The table of an experiment, from what its finished runs left.

    Args:
        experiment: From the registry.
        options: What was asked for.
        jobs: Its jobs, in order.

    Returns:
        JSON values: title, source, one entry a row and dataset, accuracies in percent, and the
        `measured` part of the table that is already there.
    """
    grouped: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        grouped.setdefault((job.row.name, data_label(job.config.data)), []).append(job)
    rows = [_entry(group, options) for group in grouped.values()]
    _compare_with_rivals(rows)
    return {
        "format": _FORMAT,
        "experiment": experiment.name,
        "title": experiment.title,
        "source": experiment.source,
        "panels": dict(experiment.panels),
        "measure": experiment.measure,
        "quick": options.quick,
        "seeds": sorted({job.config.seed for job in jobs}),
        "epochs": options.epochs,
        "rows": rows,
        "measured": _before(experiment, options)["measured"],
    }


def with_kept(experiment: Experiment, options: Options, jobs: list[Job]) -> list[Job]:
    """Jobs, and the finished and failed ones of the table that is there whose data or seeds they leave out.

    Of a file that was changed since, the runs before are left out, with a warning: a row is of one dataset.

    Args:
        experiment: From the registry.
        options: What was asked for.
        jobs: Its jobs, of `plan`.

    Returns:
        Jobs in the order of rows, datasets as the experiment names them, and seeds, whatever was asked for.
    """

    def place(job: Job) -> tuple[int, int, str, int]:
        label, data = data_label(job.config.data), experiment.data
        known = data.index(label) if label in data else len(data)
        return names.index(job.row.name), known, label, job.config.seed

    names = [row.name for row in experiment.rows]
    found = {place(job): job for job in jobs}
    asked = {data_label(job.config.data): job.config.data for job in jobs}
    changed = set()
    for entry in _before(experiment, options)["rows"]:
        if entry["row"] not in names:
            continue
        row = experiment.rows[names.index(entry["row"])]
        for key in entry["runs"]:
            settings = _settings_of(run_folder(options, key))
            if settings is None:
                continue
            # A file's path; the table has its label.
            config = row_config(experiment, row, settings["data"], settings["seed"], options)
            job = Job(row, config, key, wanted=False)
            if place(job) in found or not _counts(run_folder(options, key), job):
                continue
            data = asked.get(entry["data"])
            if data is not None and not _is_of(config, key, data):
                changed.add(entry["data"])
                continue
            found[place(job)] = job
    for label in sorted(changed):
        _logger.warning(
            "%s: what ran on %s before is left out, whose data were others; run its seeds again",
            table_path(options, experiment.name),
            label,
        )
    return [found[key] for key in sorted(found)]


def _is_of(config: RunConfig, key: str, data: str) -> bool:
    """Whether a run is of these data, not of another file whose label is the same."""
    if {data, config.data} & set(dataset_names()):
        return data == config.data
    return run_key(replace(config, data=data)) == key


def _settings_of(folder: RunFolder) -> dict[str, Any] | None:
    """The settings of a run that was finished or failed; None where nothing says them."""
    note = folder.path / "failed.json"
    for path in (folder.config, note):
        if not folder.holds(path):
            continue
        try:
            held = folder.read_json(path)
        except ValueError:
            continue
        if path == note and isinstance(held, dict):
            held = held.get("config")
        if isinstance(held, dict) and {"data", "seed"} <= held.keys():
            return held
    return None


def _counts(folder: RunFolder, job: Job) -> bool:
    return finished_summary(folder, job.config) is not None or bool(_failure(folder))


def _before(experiment: Experiment, options: Options) -> dict[str, Any]:
    """The table that is there; an empty one for none, and for one that is damaged or of another version."""
    try:
        return read_tables(options, [experiment.name])[0]
    except (ValueError, IndexError):
        return {"rows": [], "measured": {}}


def write_table(options: Options, table: dict[str, Any]) -> Path:
    """Write OUT/NAME.json, whole or not at all."""
    path = table_path(options, table["experiment"])
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(table, indent=1) + "\n"
    write_atomically(path, text)
    return path


def read_tables(options: Options, names: list[str]) -> list[dict[str, Any]]:
    """The tables in a results folder, in the order of `names`; missing ones are left out.

    Raises:
        ValueError: If one is not a table of this library.
    """
    tables = []
    for name in names:
        path = table_path(options, name)
        if not path.exists():
            continue
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{path} is not valid JSON ({error}): remove it and run again"
            ) from None
        if not isinstance(table, dict) or table.get("format") != _FORMAT:
            raise ValueError(f"{path} is not a table of this version: remove it and run again")
        tables.append(table)
    return tables


def _entry(group: list[Job], options: Options) -> dict[str, Any]:
    row, config = group[0].row, group[0].config
    folders = [run_folder(options, job.key) for job in group]
    found = [finished_summary(f, job.config) for f, job in zip(folders, group, strict=True)]
    summaries = [summary for summary in found if summary is not None]
    errors = [_failure(folder) for folder, s in zip(folders, found, strict=True) if s is None]
    reasons = [error for error in errors if error]
    if len(summaries) == len(group):
        status = "done"
    elif reasons:
        status = "failed"
    elif summaries:
        status = "partial"
    else:
        status = "skipped" if group[0].problem else "not run"
    return {
        "row": row.name,
        "data": data_label(config.data),
        "recipe": row.recipe,
        "model": row.model,
        "panel": row.panel,
        "series": row.series,
        "x": row.x,
        "rival": row.rival,
        "batch_statistics": row.batch_statistics,
        "method": config.method,
        "layers": list(config.layers),
        "channels": list(config.channels),
        "epochs": config.epochs,
        "head_epochs": config.head_epochs,
        "runs": [job.key for job in group],
        "finished": [job.key for job, s in zip(group, found, strict=True) if s is not None],
        "seeds": [summary["seed"] for summary in summaries],
        "status": status,
        "reason": reasons[0] if reasons else group[0].problem if status == "skipped" else "",
        **(_figures(row, config, summaries) if summaries else {}),
    }


def _failure(folder: RunFolder) -> str:
    """Why a run failed; nothing where it did not, or was not run."""
    note = folder.path / "failed.json"
    if not note.exists():
        return ""
    try:
        held = folder.read_json(note)
    except ValueError as error:
        return str(error)
    reason = held.get("error") if isinstance(held, dict) else None
    return str(reason or f"{note} does not say why")


def _percent(values: list[float]) -> dict[str, Any]:
    return mean_and_deviation([100 * value for value in values])


def _by_seed(values: list[float]) -> dict[str, Any]:
    return {**_percent(values), "by_seed": [100 * value for value in values]}


def _figures(row: Row, config: RunConfig, summaries: list[dict[str, Any]]) -> dict[str, Any]:
    data, depth = data_label(config.data), len(summaries[0]["test_accuracy"])
    published = _by_number(row.published.get(data, {}), depth)
    others = _by_number(row.measured.get(data, {}), depth)
    result: dict[str, Any] = {}
    for name in ("top5_accuracy", "test_accuracy_batch_statistics"):
        if all(summary.get(name) for summary in summaries):
            result[name] = [_percent(list(layer)) for layer in zip(*(s[name] for s in summaries))]  # noqa: B905
    like_theirs = result.get("test_accuracy_batch_statistics") if row.batch_statistics else None
    accuracy = []
    for layer in range(depth):
        values = [summary["test_accuracy"][layer] for summary in summaries]
        figure = _by_seed(values)
        theirs = published.get(layer + 1, others.get(layer + 1))
        if theirs is not None:
            ours = (like_theirs[layer] if like_theirs else figure)["mean"]
            figure |= {**_beside(theirs, ours), "is_published": layer + 1 in published}
            figure |= {"other_inputs": True} if data in row.other_inputs else {}
        accuracy.append(figure)
    result |= {
        "accuracy": accuracy,
        "seconds_per_epoch": mean_and_deviation([s["seconds_per_epoch"] for s in summaries]),
        "parameters": summaries[0]["parameters"],
    }
    # Forward-Forward's scores are sums over layers already.
    if depth > 1 and config.method != "ff":
        result["vote"] = _by_seed([summary["vote_accuracy"] for summary in summaries])
    if all(summary.get("peak_memory_bytes") for summary in summaries):
        result["peak_memory_bytes"] = max(summary["peak_memory_bytes"] for summary in summaries)
    return result


def _beside(theirs: Figure, ours: float) -> dict[str, Any]:
    """Theirs in a table's words, and how far ours is from it; of a range the place nearest to ours counts."""
    if isinstance(theirs, Range):
        nearest = min(max(ours, theirs.low), theirs.high)
        return _beside(nearest, ours) | {"published_range": list(theirs)}
    mean, deviation = theirs if isinstance(theirs, tuple) else (theirs, None)
    return {"published": mean, "published_sd": deviation, "difference": ours - mean}


def _by_number(figures: Mapping[int, Figure], depth: int) -> dict[int, Figure]:
    """The figures with LAST as the number it stands for; layers the network does not have are left out."""
    numbers = {depth if layer == LAST else layer: figure for layer, figure in figures.items()}
    return {layer: figure for layer, figure in numbers.items() if layer <= depth}


def _compare_with_rivals(rows: list[dict[str, Any]]) -> None:
    """Last layer, and all layers, against the rival's last, seed by seed: a seed draws the same samples."""
    found = {(row["row"], row["data"]): row for row in rows if "accuracy" in row}
    for row in rows:
        rival = found.get((row["rival"], row["data"]))
        if rival is None or "accuracy" not in row:
            continue
        theirs = dict(zip(rival["seeds"], rival["accuracy"][-1]["by_seed"], strict=True))
        shared = [seed for seed in row["seeds"] if seed in theirs]
        if not shared:
            continue
        row["rival_accuracy"] = mean_and_deviation([theirs[seed] for seed in shared])["mean"]
        answers = {"rival_difference": row["accuracy"][-1]}
        if "vote" in row:
            answers["rival_vote_difference"] = row["vote"]
        for name, figure in answers.items():
            ours = dict(zip(row["seeds"], figure["by_seed"], strict=True))
            row[name] = mean_and_deviation([ours[seed] - theirs[seed] for seed in shared])
