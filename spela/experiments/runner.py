"""Runs the jobs of a plan: one folder a run, finished ones kept, interrupted ones resumed, failures apart."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from spela.data import Dataset
from spela.experiments.archive import find_run
from spela.experiments.plan import Job, Options, data_identity, data_label, run_key
from spela.experiments.recipes import make_config
from spela.experiments.runs import load_data, run
from spela.files.atomic import remove_leftovers
from spela.process import flush_denormals, keep_freed_memory, threads_used
from spela.training import InUseError, RunConfig, RunFolder, read_checkpoint, read_evidence
from spela.training.lock import only_writer

__all__ = ["Outcome", "finished_summary", "run_folder", "run_jobs", "writing_results"]


_READ_BY_TABLES = {
    "seed",
    "device",
    "test_accuracy",
    "vote_accuracy",
    "seconds_per_epoch",
    "parameters",
}


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        key: Name of its folder.
        status: done (by this call), kept (finished before), failed, or busy (another process is writing it).
        seconds: Wall time of this call.
        error: Why it failed or was left, in one line.
    """

    key: str
    status: str
    seconds: float = 0.0
    error: str = ""


def run_folder(options: Options, key: str) -> RunFolder:
    """The folder of a run."""
    return find_run(options.folder / "runs", key)


def finished_summary(folder: RunFolder, config: RunConfig) -> dict[str, Any] | None:
    """The summary of a run that was finished with these settings, or None where there is no whole one.

    A file of data may have been moved, as the folder's name depends on its content, not on its path. A run
    that was resumed with more epochs is not a run of these settings.

    Raises:
        ValueError: If the run's other files disagree with the summary.
    """
    if not folder.holds(folder.summary):
        return None
    try:
        summary = folder.read_json(folder.summary)
    except ValueError:
        return None
    whole = (
        isinstance(summary, dict)
        and _placeless(summary.get("config")) == _placeless(config.to_dict())
        and summary.get("epochs") == config.total_epochs
        and summary.keys() >= _READ_BY_TABLES
        and "extended_at" not in summary
    )
    return read_evidence(folder).summary if whole else None


def _placeless(settings: object) -> object:
    """A run's settings with the label of its data instead of the path."""
    if not isinstance(settings, dict):
        return None
    return {**settings, "data": data_label(str(settings.get("data", "")))}


def run_jobs(
    jobs: list[Job],
    options: Options,
    processes: int = 1,
    on_outcome: Callable[[Outcome, int, int], None] | None = None,
) -> dict[str, Outcome]:
    """Run what is not finished yet; each run computes on one thread, so that results are the same however
    many run at a time.

    Args:
        jobs: Of `plan`; jobs with the same key are one run.
        options: What was asked for.
        processes: Runs at a time; 1: in this process.
        on_outcome: Told of every run as it ends, with how many are done of how many.

    Returns:
        The outcome of every run by key.

    Raises:
        ValueError: If `processes` is below 1, another call is writing to the same results folder, or it
            holds runs of another kind of device or whose files disagree.
    """
    if processes < 1:
        raise ValueError(f"jobs must be at least 1, got {processes}")
    outcomes: dict[str, Outcome] = {}
    waiting: dict[str, _Task] = {}
    for job in jobs:
        summary = finished_summary(run_folder(options, job.key), job.config)
        if summary is not None:
            _check_device(summary, options)
            outcomes[job.key] = Outcome(job.key, "kept")
        elif job.wanted and not job.problem:
            where = str(run_folder(options, job.key).path)
            root = None if options.data_root is None else str(options.data_root)
            waiting[job.key] = _Task(job.key, job.config.to_dict(), where, root, options.device)
    total = len(waiting)

    def note(outcome: Outcome) -> None:
        outcomes[outcome.key] = outcome
        del waiting[outcome.key]
        if on_outcome is not None:
            on_outcome(outcome, total - len(waiting), total)

    if not waiting:
        return outcomes
    with writing_results(options):
        if processes == 1:
            with threads_used(1), flush_denormals():
                for task in list(waiting.values()):
                    note(_run_task(task))
        else:
            _run_in_pool(waiting, processes, note)
    return outcomes


def _check_device(summary: dict[str, Any], options: Options) -> None:
    """Accuracy, times and memory differ by device: one table has runs of one kind only."""
    if str(summary["device"]).split(":")[0] != torch.device(options.device).type:
        raise ValueError(
            f"{options.folder} holds runs made on {summary['device']}: give runs on {options.device} "
            "an --out of their own"
        )


@dataclass(frozen=True)
class _Task:
    """A job as plain values, which is what another process can be sent."""

    key: str
    config: dict[str, Any]
    folder: str
    data_root: str | None
    device: str


def _run_in_pool(
    waiting: dict[str, _Task], processes: int, note: Callable[[Outcome], None]
) -> None:
    try:
        with _pool(min(processes, len(waiting))) as pool:
            with _no_interrupt():
                futures: list[Future[Outcome]] = [
                    pool.submit(_run_task, task) for task in waiting.values()
                ]
            for future in as_completed(futures):
                note(future.result())
    except BrokenProcessPool:
        # A process died (out of memory, most likely) and took the pool along: the rest goes one by one,
        # so that the run that kills its process is found and the others are not lost with it.
        for task in list(waiting.values()):
            try:
                with _pool(1) as pool:
                    with _no_interrupt():
                        future = pool.submit(_run_task, task)
                    note(future.result())
            except BrokenProcessPool:
                note(_failed(task, "its process was killed (out of memory?)", 0.0))


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    # Spawned, not forked: torch's threads do not survive a fork.
    context, before = multiprocessing.get_context("spawn"), multiprocessing.active_children()
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in set(multiprocessing.active_children()) - set(before):
            worker.terminate()  # else this process would wait for one that is still importing
        raise
    pool.shutdown()


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Ctrl-C waits for the end of the block, and in processes started inside until they ask for it.

    A worker imports for seconds before its first line of ours, and would print a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_quietly(signum: int, frame: FrameType | None) -> None:
    os._exit(130)  # Ctrl-C reaches every process: the parent speaks for all


def _start_worker() -> None:
    signal.signal(signal.SIGINT, _leave_quietly)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    keep_freed_memory()  # the process is ours, as the command line's is
    torch.set_flush_denormal(True)  # for good, what `flush_denormals` does for a block
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def leave_with_parent() -> None:
        # A worker that outlives a killed parent would go on writing into the run that is resumed.
        parent.join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


@contextmanager
def writing_results(options: Options) -> Iterator[None]:
    """Be the only writer of runs, tables and reports in the results folder.

    Raises:
        InUseError: If another process is.
    """
    folder = options.folder
    with only_writer(
        folder,
        f"another `spela reproduce` is writing to {folder}: wait for it, or choose another --out",
    ):
        for part in ("", "plots", "runs"):  # a run's folder is its own writer's
            remove_leftovers(folder / part)
        yield


def _run_task(task: _Task) -> Outcome:
    started = time.perf_counter()
    config = RunConfig.from_dict(task.config)
    folder = RunFolder(task.folder)
    try:
        with folder.writing():
            dataset = _data_of(config, task.data_root)
            if run_key(config) != task.key:  # the folder's name is of what the file held before
                raise ValueError(f"{config.data} was changed since this call began: call it again")
            resume = _can_resume(folder, config)
            run(config, dataset, folder.path, resume=resume, device=task.device)
            (folder.path / "failed.json").unlink(missing_ok=True)
    except InUseError as error:  # nothing in that folder is ours to change
        return Outcome(task.key, "busy", time.perf_counter() - started, str(error))
    except Exception as error:  # one run's failure, of whatever kind, must not lose the others
        message = " ".join(str(error).split()) or type(error).__name__
        return _failed(task, message, time.perf_counter() - started)
    return Outcome(task.key, "done", time.perf_counter() - started)


def _failed(task: _Task, message: str, seconds: float) -> Outcome:
    folder = RunFolder(task.folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_json(folder.path / "failed.json", {"error": message, "config": task.config})
    return Outcome(task.key, "failed", seconds, message)


def _can_resume(folder: RunFolder, config: RunConfig) -> bool:
    """Whether there is a checkpoint of these settings and all records before it; else the run starts over.

    Raises:
        ValueError: If the folder holds a whole run of other settings or of more epochs, which somebody made.
    """
    try:
        evidence, checkpoint = read_checkpoint(folder)
    except ValueError:
        folder.clear()
        return False
    if len(evidence.records) < checkpoint.epoch:
        folder.clear()
        return False
    same = _placeless(checkpoint.config.to_dict()) == _placeless(config.to_dict())
    if not same or checkpoint.extended_at:
        raise ValueError(
            f"{folder.path} holds a run of other settings or more epochs, which is no run of this table: "
            "move it away"
        )
    folder.remove_summary()  # of another version: what tables need is not in it
    return True


_DATA_SETTINGS = ("test_share", "resize", "noise", "label_noise")


def _data_of(config: RunConfig, data_root: str | None) -> Dataset:
    """The data of a run; the last one is kept, because the next run often has the same."""
    settings = {name: getattr(config, name) for name in _DATA_SETTINGS}
    # The seed decides the split and the noise, and only where there is one.
    drawn = any(settings[name] for name in ("test_share", "noise", "label_noise"))
    shared = make_config(config.data, seed=config.seed if drawn else 0, **settings)
    return _load(shared, data_root, data_identity(config.data))


@lru_cache(maxsize=1)
def _load(config: RunConfig, data_root: str | None, identity: str) -> Dataset:
    """`identity` is for the cache: a file that was changed is another dataset."""
    return load_data(config, None if data_root is None else Path(data_root))
