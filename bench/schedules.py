"""Pipeline schedules as lists of tasks, and what they take: the simulator under `bench.pipeline_model`.

A stage runs its tasks in its own order; a task starts when its stage is free and what it needs has
arrived. Sources: Huang et al., "GPipe", NeurIPS 2019; Narayanan et al., "PipeDream", SOSP 2019 (1F1B), and
"Efficient Large-Scale Language Model Training on GPU Clusters", SC 2021 (1F1B with a flush, warm-up of
p - r - 1 forwards); TMLR 2025, Algorithm 1, for SPELA, whose layers wait for nothing behind them.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Task", "gpipe", "most_held", "one_forward_one_backward", "simulate", "spela"]


class Task(NamedTuple):
    """One piece of work of a stage.

    Attributes:
        kind: F (a forward, which the stage before feeds) or B (a backward, which the stage after feeds).
        batch: Number of the micro-batch.
    """

    kind: str
    batch: int


def spela(stages: int, batches: int) -> list[list[Task]]:
    """Every stage learns from each batch as it comes; there are no backwards."""
    return [[Task("F", i) for i in range(batches)] for _ in range(stages)]


def gpipe(stages: int, batches: int) -> list[list[Task]]:
    """All forwards, then all backwards in the reverse order."""
    forward = [Task("F", i) for i in range(batches)]
    return [forward + [Task("B", i) for i in reversed(range(batches))] for _ in range(stages)]


def one_forward_one_backward(stages: int, batches: int) -> list[list[Task]]:
    """Stage r starts with p - r - 1 forwards, then one forward and one backward in turn, then flushes."""
    schedule = []
    for stage in range(stages):
        warm = min(stages - stage - 1, batches)
        tasks = [Task("F", i) for i in range(warm)]
        for i in range(batches - warm):
            tasks += [Task("F", warm + i), Task("B", i)]
        tasks += [Task("B", i) for i in range(batches - warm, batches)]
        schedule.append(tasks)
    return schedule


def simulate(schedule: list[list[Task]], forward: float, backward: float, transfer: float) -> float:
    """Time until the last task ends.

    Args:
        schedule: The tasks of each stage, in its order.
        forward: Time of a stage's F.
        backward: Time of a stage's B.
        transfer: Time that a stage's result takes to its neighbour; transfers overlap with work.

    Raises:
        ValueError: If the tasks wait for each other in a circle.

    Example:
        >>> simulate(gpipe(2, 3), 1.0, 2.0, 0.0)
        12.0
    """
    stages = len(schedule)
    ended: dict[tuple[int, Task], float] = {}
    free, done = [0.0] * stages, [0] * stages
    left = sum(map(len, schedule))
    while left:
        before = left
        for stage, tasks in enumerate(schedule):
            while done[stage] < len(tasks):
                task = tasks[done[stage]]
                source = stage - 1 if task.kind == "F" else stage + 1
                arrived = 0.0
                if 0 <= source < stages:
                    if (source, task) not in ended:
                        break
                    arrived = ended[source, task] + transfer
                start = max(free[stage], arrived)
                free[stage] = start + (forward if task.kind == "F" else backward)
                ended[stage, task] = free[stage]
                done[stage] += 1
                left -= 1
        if left == before:
            raise ValueError("the schedule's tasks wait for each other: check its order")
    return max(free)


def most_held(schedule: list[list[Task]]) -> int:
    """The most micro-batches whose activations a stage keeps for their backward.

    Example:
        >>> most_held(gpipe(4, 8)), most_held(one_forward_one_backward(4, 8)), most_held(spela(4, 8))
        (8, 4, 0)
    """
    most = 0
    for tasks in schedule:
        if not any(task.kind == "B" for task in tasks):
            continue
        held = 0
        for task in tasks:
            held += 1 if task.kind == "F" else -1
            most = max(most, held)
    return most
