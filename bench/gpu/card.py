"""Part `card`: what the figures were measured on."""

from __future__ import annotations

import importlib
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

from bench.gpu.meters import find_card
from bench.gpu.rows import Rows
from bench.gpu.setting import Setting
from spela.process.machine import describe_machine

__all__ = ["measure"]

_PACKAGES = (
    "torch", "triton", "numpy", "scipy", "scikit-learn", "safetensors", "filelock", "typer", "tqdm",
    "jinja2", "matplotlib", "pillow", "torchvision", "pytest", "pytest-xdist", "onnxscript",
)  # fmt: skip
_QUERY = "driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit,mig.mode.current"


def measure(rows: Rows, setting: Setting) -> None:
    """Card, driver, versions, and which tools are there."""
    properties = torch.cuda.get_device_properties(0)
    published = find_card()
    rows.add(
        "card",
        name=properties.name,
        architecture=f"sm_{properties.major}{properties.minor}",
        multiprocessors=properties.multi_processor_count,
        memory_gb=properties.total_memory / 1e9,
        l2_mib=getattr(properties, "L2_cache_size", 0) / 2**20,
        published_gbs=None if published is None else published.bandwidth,
    )
    if published is None:
        rows.note(
            "The cost model has no published figures of this card: shares of peaks are left out."
        )
    for name, value in describe_machine().items():
        rows.add("machine", what=name, value=value)
    for name in _PACKAGES:
        try:
            rows.add("packages", package=name, version=version(name))
        except PackageNotFoundError:
            rows.add("packages", package=name, version=_imported_version(name))
    for tool in ("nvidia-smi", "ncu", "compute-sanitizer", "cc", "gcc", "clang"):
        rows.add("tools", tool=tool, found=shutil.which(tool) is not None)
    if shutil.which("nvidia-smi") is not None:
        command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader"]
        uuid = getattr(properties, "uuid", None)  # the card that CUDA_VISIBLE_DEVICES left
        command += [] if uuid is None else [f"--id=GPU-{uuid}"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        values = (found.stdout or found.stderr).strip().splitlines()
        rows.note(f"nvidia-smi ({_QUERY}): {values[0] if values else 'nothing'}")


def _imported_version(name: str) -> str:
    """Of a module without a distribution's metadata."""
    try:
        module = importlib.import_module(name.replace("-", "_"))
    except ImportError:
        return "missing"
    return str(getattr(module, "__version__", "unknown"))
