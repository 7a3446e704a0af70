"""Part `memory`: peak memory of a step against depth, of networks in blocks, and of convolution layers."""

from __future__ import annotations

from dataclasses import replace

from bench.gpu.meters import add_times, flush_buffer
from bench.gpu.rows import Rows
from bench.gpu.setting import Setting
from spela.benchmarks.blocks import NETWORK_SIZES, block_points
from spela.benchmarks.convolution import (
    CONV_CASES,
    CONV_VARIANTS,
    ConvCase,
    check_conv_parity,
)
from spela.benchmarks.memory import memory_points

__all__ = ["measure"]

_SHAPES = tuple((depth, 1024) for depth in (2, 8, 16, 32))


def measure(rows: Rows, setting: Setting) -> None:
    """Depth, blocks, convolutions."""
    device = setting.device
    for shape in setting.pick(_SHAPES, ((1, 8),)):
        for point in memory_points([shape], batch=setting.pick(512, 4), device=device):
            point["peak_mb"] = point.pop("peak_bytes") / 1e6
            rows.add("against depth, batch 512", **point)
    for size in setting.pick(NETWORK_SIZES, (("resnet", 4, 4),)):
        counts = setting.pick((1, 2, 3, 4, "layers"), (2,))
        pixels = setting.pick(32, 8)
        for point in block_points([size], counts=counts, pixels=pixels, least=3, device=device):
            point["peak_mb"] = point.pop("peak_bytes") / 1e6
            rows.add("in blocks", **point)
    flush = flush_buffer(setting)
    for case in setting.pick(tuple(CONV_CASES.values()), (ConvCase("tiny", 1, 8, 2),)):
        case = replace(case, device=device)
        try:
            check_conv_parity(case)
        except Exception as error:  # whatever a GPU raises belongs in the report
            rows.failed("parity", error, case=case.name)
        for name, make in CONV_VARIANTS.items():
            cells = {"images": case.name, "variant": name}
            add_times(
                rows, "a convolution layer's step, Adam", cells,
                lambda make=make, case=case: make(case), flush, setting,
            )  # fmt: skip
