"""Part `networks`: a training step of whole networks against its rivals, and the project's goals for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from bench.gpu.meters import Times, add_times, find_card, flush_buffer, release_memory, tf32
from bench.gpu.rows import Rows
from bench.gpu.setting import Setting
from spela.benchmarks.network import (
    ADAM_RATE,
    LEARNING_RATE,
    NETWORK_CASES,
    VARIANTS,
    NetworkCase,
    check_parity,
)
from spela.graphed import GraphedStep, can_capture
from spela.optim import LocalAdam, LocalSGD
from spela_kernels.cost.roofline import Gpu
from spela_kernels.linear.configs import Problem
from spela_kernels.linear.cost import Step

__all__ = ["compulsory_bytes", "measure", "promises"]

Optimizer = Callable[..., torch.optim.Optimizer]
_COMPILED = ("backprop_compiled",)  # for which there may be no time left
# Rivals whose products torch makes, once more with TF32.
_TF32 = ("floor", "backprop_fused")
# Calls of `GraphedStep`: their time is in the column of eager ones.
_GRAPHED: dict[str, Optimizer] = {
    "spela, GraphedStep": partial(LocalSGD, lr=LEARNING_RATE),
    "spela_adam, GraphedStep": partial(LocalAdam, lr=ADAM_RATE),
}
_TINY = (NetworkCase((6, 8), 4, 3),)


def compulsory_bytes(case: NetworkCase, moments: int = 0) -> int:
    """What any step of a network's layers must move, layer by layer."""
    pairs = zip(case.sizes[:-1], case.sizes[1:], strict=True)
    return sum(
        Step(Problem(case.batch, i, o, case.classes, 4, 4), moments=moments).compulsory_bytes
        for i, o in pairs
    )


def _roofline(case: NetworkCase, variant: str, gpu: Gpu | None) -> dict[str, float]:
    """Microseconds at the published bandwidth, of the variants whose bytes are counted."""
    moments = {"spela": 0, "spela_adam": 2}.get(variant)
    if gpu is None or moments is None:
        return {}
    return {"roofline_us": compulsory_bytes(case, moments) / gpu.bandwidth / 1e3}


def promises(case: NetworkCase, found: dict[str, Times], bandwidth: float | None) -> list[dict]:
    """What the figures say of the project's goals for a network's step.

    Args:
        case: The network.
        found: Times by variant.
        bandwidth: Of the card, GB/s; None where it is not known.

    Returns:
        Rows of goal, figure, and whether it is met.
    """
    rows = []
    ours = found.get("spela")
    if ours is None:
        return rows

    def add(goal: str, figure: float, met: bool) -> None:
        rows.append({"network": case.name, "goal": goal, "figure": figure, "met": met})

    if "backprop_compiled" in found and ours.replayed is not None:
        ratio = found["backprop_compiled"].best / ours.replayed
        add("replayed: at least 3 times as fast as torch.compile'd backprop", ratio, ratio >= 3)
    if bandwidth is not None and ours.replayed is not None:
        ratio = ours.cold / (compulsory_bytes(case) / bandwidth / 1e3)
        add("replayed and cold: within 1.3 of the roofline of its bytes", ratio, ratio <= 1.3)
    rival = found.get("backprop")
    if rival is not None and rival.replayed is not None:
        ratio = ours.eager / rival.replayed
        add("eager: no slower than backprop's graph, replayed", ratio, ratio <= 1)
    return rows


def _graphed(case: NetworkCase, optimizer: Optimizer) -> Callable[[], object]:
    """Our step as a user replays it: batch and rate are copied into the graph's memory at every call."""
    (x, target), net = case.data(), case.network()
    required = can_capture(x.device)  # not in a dry run
    step = GraphedStep(net, optimizer(net.parameters()), required=required)
    return lambda: step(x, target)


def measure(rows: Rows, setting: Setting) -> None:
    """Parity first, then every variant; last what has to be compiled, and the goals."""
    gpu, flush = find_card(), flush_buffer(setting)
    cases = [replace(case, device=setting.device) for case in setting.pick(NETWORK_CASES, _TINY)]
    found: dict[str, dict[str, Times]] = {case.name: {} for case in cases}

    def add(case: NetworkCase, name: str, fast: bool) -> None:
        cells = {"network": case.name, "variant": name + ", tf32" * fast}
        roofline = _roofline(case, name, gpu)
        with tf32(fast):
            times = add_times(
                rows, "networks", cells, lambda: VARIANTS[name](case), flush, setting, lambda _: roofline
            )  # fmt: skip
        if times is not None and not fast:
            found[case.name][name] = times

    for case in cases:
        try:
            check_parity(case)
        except Exception as error:  # whatever a GPU raises belongs in the report
            rows.failed("parity", error, case=case.name)
        for name in VARIANTS:
            if name not in _COMPILED:
                add(case, name, False)
        for name in _TF32:
            add(case, name, True)
        for name, optimizer in _GRAPHED.items():
            add_times(
                rows, "networks", {"network": case.name, "variant": name},
                lambda case=case, optimizer=optimizer: _graphed(case, optimizer), flush, setting,
                capture=False,
            )  # fmt: skip
        release_memory()
    for case in cases:
        for name in _COMPILED:
            add(case, name, False)
        for row in promises(case, found[case.name], None if gpu is None else gpu.bandwidth):
            rows.add("goals", **row)
        release_memory()
