"""A run folder's network as a file for another runtime."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from spela.choices import EXPORTS, FORMATS, OPSET
from spela.experiments import build_network, build_optimizer, load_run
from spela.export.inference import inference_program
from spela.export.onnx_file import write_onnx
from spela.export.program import Program
from spela.export.pt2_file import write_pt2
from spela.export.pte_file import write_pte
from spela.export.train_step import train_step_program
from spela.layers import PatchWhitening, Standardize
from spela.network import SpelaSequential
from spela.training import Checkpoint, restore

__all__ = ["export_run"]


def export_run(
    path: str | Path,
    out: str | Path,
    *,
    what: str = "inference",
    batch_size: int | None = None,
    untrained: bool = False,
    opset: int = OPSET,
    weights_apart: bool = False,
) -> Program:
    """Write the network of a run's checkpoint, or its training step, to a file.

    Args:
        path: The run folder.
        out: The file to create or replace; its ending, .onnx, .pt2 or .pte, is its format.
        what: inference or train-step.
        batch_size: None for any batch.
        untrained: Start from the weights the run started from, not from those it reached.
        opset: Of an ONNX file.
        weights_apart: Weights as inputs of an ONNX file that every call feeds, and their first values in a
            .safetensors file beside it.

    Returns:
        What was written.

    Raises:
        ValueError: If the folder holds no readable checkpoint, its files disagree, or this network cannot
            be exported so, or `out` ends otherwise.
        OSError: If the file cannot be written.
    """
    if what not in EXPORTS:
        raise ValueError(f"unknown program {what!r}: use one of {', '.join(EXPORTS)}")
    out = Path(out)
    format = out.suffix.removeprefix(".")
    if format not in FORMATS:
        endings = ", ".join(f".{name}" for name in FORMATS)
        raise ValueError(f"cannot tell the format of {out}: end its name with one of {endings}")
    if weights_apart and format != "onnx":
        raise ValueError(f"weights_apart is for .onnx files, got {out}: leave it out")
    if out.is_dir():
        raise ValueError(f"{out} is a folder: give --out the name of a file")
    if not out.parent.is_dir():
        raise ValueError(f"cannot write {out}: give --out a file in a folder that exists")
    # Whose weights are those that the run's other files speak of.
    checkpoint = load_run(path).checkpoint
    program = _program(checkpoint, what, batch_size, untrained, weights_apart)
    if format == "onnx":
        write_onnx(program, out, opset=opset, weights_apart=weights_apart)
    elif format == "pt2":
        write_pt2(program, out)
    else:
        write_pte(program, out)
    return program


def _keep_scaling(checkpoint: Checkpoint, net: nn.Module) -> None:
    """The scaling of the run's input is its data's: known before the first step, and no part of training."""
    for name, module in net.named_children():
        if isinstance(module, (Standardize, PatchWhitening)):
            for key, own in module.named_buffers():
                own.copy_(checkpoint.tensors[f"model.{name}.{key}"])


def _program(
    checkpoint: Checkpoint, what: str, batch_size: int | None, untrained: bool, weights_apart: bool
) -> Program:
    config, shape = checkpoint.config, checkpoint.sample_shape
    net = build_network(config, shape, len(checkpoint.class_names))
    optimizer = build_optimizer(config, net)
    if untrained:
        _keep_scaling(checkpoint, net)
    else:
        restore(checkpoint, net, optimizer)
    pixels = str(checkpoint.sample_dtype) == "torch.uint8"
    facts = {
        "class_names": list(checkpoint.class_names),
        "sample_shape": list(shape),
        "input": "pixels 0..255 divided by 255" if pixels else "features as they were trained on",
        "epoch": 0 if untrained else checkpoint.epoch,
        "lr": config.lr,
        "batch_size": config.batch_size,
        "config": config.to_dict(),
    }
    if what == "inference":
        return inference_program(
            net, shape, batch_size=batch_size, weights_as_inputs=weights_apart, facts=facts
        )
    if not isinstance(net, SpelaSequential):
        raise ValueError(
            f"a {config.method} run has no training step without autograd: use --what inference"
        )
    return train_step_program(net, optimizer, shape, batch_size=batch_size, facts=facts)
