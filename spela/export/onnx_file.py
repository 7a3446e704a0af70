"""ONNX: programs as files for onnxruntime and other engines, in operators of the plain ai.onnx domain."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from spela.choices import OLDEST_OPSET, OPSET
from spela.export.program import Program
from spela.files.atomic import Content, write_all_atomically
from spela.files.tensors import fill_tensors, read_tensors

__all__ = ["write_onnx"]

_WEIGHTS = "spela-weights"  # the format in the metadata of weights apart

# Protocol buffers end at 2 GiB, and weights are kept in the same file.
MOST_BYTES = 2**31 - 2**20


def write_onnx(
    program: Program, path: str | Path, *, opset: int = OPSET, weights_apart: bool = False
) -> None:
    """Write a program as one ONNX file, whole or not at all.

    Inputs with a default become initializers of the same name: a caller that leaves them out gets the
    default, a caller that feeds them overrides it. The program's facts are in the file's metadata
    under the key `spela`. onnxruntime runs no float64 convolution: call `net.float()` before.

    With `weights_apart` they have no value in the file, which every caller then feeds; the first values
    go to a safetensors file of the same name. Some runtimes cannot feed an initializer (onnxruntime-web
    among them): there a step would begin anew at every call.

    Args:
        program: From `inference_program` or `train_step_program`.
        path: The file to create or replace.
        opset: Version of the operator set, 20 to 25; older runtimes need a lower one.
        weights_apart: Write the defaults beside the ONNX file, as `path` with the ending .safetensors for
            .onnx, or behind its whole name.

    Raises:
        ValueError: If onnx or onnxscript is missing, the opset is out of range, the file would
            pass ONNX's limit of 2 GiB, weights are to be apart that the program does not take as inputs, or
            a file of another kind is where they would go.
        OSError: If a file cannot be written.
    """
    if not OLDEST_OPSET <= opset <= OPSET:
        raise ValueError(f"the opset must be in {OLDEST_OPSET}..{OPSET}, got {opset}")
    for name in ("onnx", "onnxscript"):
        if find_spec(name) is None:
            raise ValueError(f"{name} is not installed: pip install onnx onnxscript")
    path = Path(path)
    # Of net.v1 not net.safetensors, which would be net.v2's, too.
    beside = path.with_name(path.name.removesuffix(".onnx") + ".safetensors")
    if weights_apart and not program.defaults:
        raise ValueError(
            "this program has its weights inside: make it with weights_as_inputs=True to have them apart"
        )
    if weights_apart and beside.exists() and not _holds_weights(beside):
        raise ValueError(
            f"{beside} is where the weights would go, and it is another program's or a run's: give the ONNX "
            "file another name"
        )
    weights = (*program.exported.state_dict.values(), *program.defaults.values())
    if any(value.dtype == torch.bfloat16 for value in weights):
        raise ValueError(
            "weights in bfloat16 have no ONNX file here: call float() first, or write a pt2 file"
        )
    inside = {} if weights_apart else program.defaults
    tensors = [*program.exported.state_dict.values(), *inside.values()]
    if sum(t.numel() * t.element_size() for t in tensors) > MOST_BYTES:
        raise ValueError("an ONNX file ends at 2 GiB and this network is larger: write a .pt2 file")
    content = _model(program, opset, inside).SerializeToString()
    files: dict[Path, Content] = {path: content}
    if weights_apart:
        apart = {name: value.detach().contiguous() for name, value in program.defaults.items()}
        files[beside] = partial(fill_tensors, tensors=apart, metadata={"format": _WEIGHTS})
    write_all_atomically(files)


def _holds_weights(path: Path) -> bool:
    """Whether a file is of an earlier call: anything else there, such as a run's checkpoint, is not ours."""
    try:
        read_tensors(path, _WEIGHTS)
    except (SafetensorError, OSError, UnicodeDecodeError, ValueError):
        return False
    return True


def _model(program: Program, opset: int, defaults: Mapping[str, Tensor]) -> Any:
    import onnx  # here because it is an extra

    with warnings.catch_warnings():
        # Of torch's own code about its next version: nothing a caller could change.
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        converted = torch.onnx.export(
            program.exported,
            dynamo=True,
            opset_version=opset,
            input_names=list(program.inputs),
            output_names=list(program.outputs),
            # onnxscript's optimizer takes an added 1e-8 for zero and drops it: Adam's steps of weights
            # without a gradient would become 0 / 0. Engines optimize what they load themselves.
            optimize=False,
            verbose=False,
        )
    if converted is None:
        raise ValueError("torch's ONNX exporter gave no model: update torch")
    model = converted.model_proto
    for name, value in defaults.items():
        model.graph.initializer.append(_constant(name, value))
    # torch's notes on how each node came about: a third of the file, and of no use to an engine.
    for entry in (model.graph, *model.graph.node, *model.graph.value_info):
        del entry.metadata_props[:]
    onnx.helper.set_model_props(model, {"spela": json.dumps(dict(program.facts))})
    onnx.checker.check_model(model)
    written = {entry.domain: entry.version for entry in model.opset_import}
    if written.get("") != opset:
        raise ValueError(
            f"the converter wrote opset {written.get('')}, not {opset}: update onnxscript"
        )
    return model


def _constant(name: str, value: Tensor) -> Any:
    import onnx

    return onnx.numpy_helper.from_array(value.detach().cpu().numpy(), name)
