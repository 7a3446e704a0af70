"""Checkpoints: network and optimizer state in one safetensors file, the run's facts in its metadata."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from spela.data import Dataset
from spela.files.tensors import read_tensors, save_tensors
from spela.files.text import printable
from spela.layers.contract import FusedOptimizer
from spela.layers.steps import apart
from spela.process.machine import describe_machine
from spela.training.config import RunConfig

__all__ = [
    "Checkpoint",
    "load_checkpoint",
    "load_state_tensors",
    "restore",
    "save_checkpoint",
    "state_tensors",
]

_FORMAT = "spela-checkpoint-1"
# Of a parameter that has stepped; SGD without momentum keeps nothing.
_STATE_FIELDS: tuple[tuple[type, set[str]], ...] = (
    (torch.optim.SGD, {"momentum_buffer"}),
    (torch.optim.Adam, {"step", "exp_avg", "exp_avg_sq"}),
    (torch.optim.AdamW, {"step", "exp_avg", "exp_avg_sq"}),
)
_DTYPES = {"uint8": torch.uint8, "float32": torch.float32}


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        config: The run's settings.
        epoch: Epochs done.
        sample_shape: Shape of one input.
        sample_dtype: Of the samples as stored: uint8 pixels or float32 features.
        class_names: Name of each class.
        tensors: Named tensors: `model.*` and `optimizer.*`.
        torch_version: Of the torch that wrote it.
        extended_at: How many epochs were done each time the run was given more.
        data_digest: Of the dataset it learns from, `Dataset.digest`; empty in files of older versions.
        made_by: What trained it, `describe_machine`; several where it was resumed with something else. Empty
            in files of older versions.
    """

    config: RunConfig
    epoch: int
    sample_shape: tuple[int, ...]
    sample_dtype: torch.dtype
    class_names: tuple[str, ...]
    tensors: dict[str, Tensor]
    torch_version: str = "unknown"
    extended_at: tuple[int, ...] = ()
    data_digest: str = ""
    made_by: tuple[dict[str, Any], ...] = ()

    def check_data(self, dataset: Dataset, run: str, advice: str) -> None:
        """Refuse data that the run did not learn from; files of older versions do not say which they did.

        Args:
            dataset: The data at hand.
            run: The run's name, for the message.
            advice: What to do, for the message.

        Raises:
            ValueError: If it is other data.
        """
        if self.data_digest not in ("", dataset.digest):
            raise ValueError(
                f"{dataset.source or dataset.name} holds other samples, labels or class names than {run} "
                f"learnt from: {advice}"
            )


def state_tensors(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and buffers as `model.*`, the optimizer's state of each parameter as `optimizer.*`.

    Args:
        net: The network.
        optimizer: Its optimizer; hyper-parameters are not in its state.

    Returns:
        Contiguous tensors by name; one that has two names is there twice, as the file's format asks.
    """
    tensors = {f"model.{k}": v.detach().contiguous() for k, v in net.state_dict().items()}
    return dict(apart(tensors.items())) | {
        f"optimizer.{name}.{key}": value.detach().contiguous()
        for name, parameter in net.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all; `load_checkpoint` reads it back.

    Args:
        path: The file to create or replace.
        checkpoint: Its content, with the tensors of `state_tensors`; what it says of torch is not written,
            but this torch's version.

    Raises:
        OSError: If the disk is full or the folder not writable; an older checkpoint then stays.
    """
    dtypes = {dtype: name for name, dtype in _DTYPES.items()}
    facts = {
        "config": checkpoint.config.to_dict(),
        "epoch": checkpoint.epoch,
        "sample_shape": list(checkpoint.sample_shape),
        "sample_dtype": dtypes[checkpoint.sample_dtype],
        "class_names": list(checkpoint.class_names),
        "torch": str(torch.__version__),
        "data_digest": checkpoint.data_digest,
        "made_by": list(checkpoint.made_by),
        **({"extended_at": list(checkpoint.extended_at)} if checkpoint.extended_at else {}),
    }
    save_tensors(path, checkpoint.tensors, {"format": _FORMAT, "run": json.dumps(facts)})


def _unreadable(path: Path, why: object) -> ValueError:
    """The error for a file that cannot be read: of another version, where it says so, or else damaged."""
    wrote, here = _version(path), describe_machine()["spela"]
    if wrote not in ("", here):
        return ValueError(
            f"{path} was written by spela {printable(wrote)}, and this is {here}, which cannot read it "
            f"({why}): use that version"
        )
    return ValueError(
        f"{path} is not a readable checkpoint ({why}): it is damaged, not SPELA's, or of another version"
    )


def _version(path: Path) -> str:
    """Of the library that last wrote a checkpoint; "" where it does not say."""
    try:
        with safe_open(path, framework="pt") as file:
            return str(json.loads(file.metadata()["run"])["made_by"][-1]["spela"])
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RecursionError):
        return ""


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; nothing is unpickled.

    Args:
        path: A file written by `save_checkpoint`.

    Returns:
        Its content, tensors on the CPU.

    Raises:
        ValueError: If the file is missing, truncated, or not a checkpoint of this library.
        OSError: If it cannot be read now, which says nothing of what it holds.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: the folder holds no finished epoch of a run")
    try:
        tensors, metadata = read_tensors(path, _FORMAT)
        facts: dict[str, Any] = json.loads(metadata["run"])
        return Checkpoint(
            RunConfig.from_dict(facts["config"]),
            int(facts["epoch"]),
            tuple(int(n) for n in facts["sample_shape"]),
            _DTYPES[facts["sample_dtype"]],
            tuple(str(name) for name in facts["class_names"]),
            tensors,
            str(facts.get("torch", "unknown")),
            tuple(int(n) for n in facts.get("extended_at", ())),
            str(facts.get("data_digest", "")),
            tuple(dict(maker) for maker in facts.get("made_by", ())),
        )
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error}") from None
    except (
        SafetensorError, KeyError, TypeError, ValueError, OverflowError, RecursionError,
    ) as error:  # fmt: skip
        raise _unreadable(path, error) from None


def restore(
    checkpoint: Checkpoint, net: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Put a checkpoint's tensors into a network, and into its optimizer.

    Args:
        checkpoint: From `load_checkpoint`.
        net: A network of the checkpoint's architecture.
        optimizer: An optimizer built from net.parameters(), or None.

    Raises:
        ValueError: If tensors are missing, left over or of another shape or dtype.
    """
    load_state_tensors(checkpoint.tensors, net, optimizer)


def load_state_tensors(
    tensors: dict[str, Tensor], net: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """The inverse of `state_tensors`, wholly or not at all; the optimizer forgets what it has of the network.

    Args:
        tensors: By name; other names than `model.*` and `optimizer.*` are left alone.
        net: A network of the same architecture.
        optimizer: An optimizer built from net.parameters(), or None.

    Raises:
        ValueError: If tensors are missing, left over or of another shape or dtype.
    """
    prefix = "model."
    state = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
    for name, own in net.state_dict().items():
        # A layer takes nn.Linear's state as well, without class vectors; a checkpoint has them.
        if name not in state:
            raise ValueError(f"the checkpoint does not fit the network: it lacks {prefix}{name}")
        if state[name].dtype != own.dtype:
            raise ValueError(
                f"the checkpoint does not fit the network: {prefix}{name} is {state[name].dtype}, "
                f"expected {own.dtype}"
            )
    before = {name: own.clone() for name, own in net.state_dict().items()}
    try:
        net.load_state_dict(state)  # copies what fits, and then says what does not
        found = {} if optimizer is None else _optimizer_state(tensors, net, optimizer)
    except BaseException as error:  # Ctrl-C too
        net.load_state_dict(before)
        if not isinstance(error, RuntimeError):
            raise
        first = " ".join(str(error).split())
        raise ValueError(f"the checkpoint does not fit the network: {first}") from None
    if optimizer is not None:
        for parameter in net.parameters():  # what it gathered before is of other weights
            optimizer.state.pop(parameter, None)
        for parameter, fields in found.items():
            optimizer.state[parameter] = fields


def _optimizer_state(
    tensors: dict[str, Tensor], net: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[nn.Parameter, dict[str, Tensor]]:
    """Each parameter's state, whole or none: numbers, and tensors of the parameter's shape and dtype."""
    state: dict[nn.Parameter, dict[str, Tensor]] = {}
    groups = optimizer.param_groups
    amsgrad = {id(p) for group in groups if group.get("amsgrad") for p in group["params"]}
    fused = isinstance(optimizer, FusedOptimizer) or any(group.get("fused") for group in groups)
    left = {name for name in tensors if name.startswith("optimizer.")}
    expected = next((fields for kind, fields in _STATE_FIELDS if isinstance(optimizer, kind)), None)
    for name, parameter in net.named_parameters():
        start = f"optimizer.{name}."
        found = {k[len(start) :]: tensors[k] for k in left if k.startswith(start)}
        left -= {start + field for field in found}
        whole = expected and expected | ({"max_exp_avg_sq"} if id(parameter) in amsgrad else set())
        if found and whole is not None and set(found) != whole:
            raise ValueError(
                f"the checkpoint's optimizer state of {name} is {', '.join(sorted(found))}, expected "
                f"{', '.join(sorted(whole))}"
            )
        for field, value in found.items():
            may_be_number = field == "step" or expected is None
            is_number = may_be_number and value.dim() == 0 and value.is_floating_point()
            if not is_number and not (_fits(value, parameter) and value.dtype == parameter.dtype):
                raise ValueError(
                    f"the checkpoint's {start}{field} is {tuple(value.shape)} {value.dtype}, expected "
                    f"{tuple(parameter.shape)} {parameter.dtype}"
                )
            dtype = torch.float32 if is_number and fused else value.dtype
            # "step" too: fused steps want it beside the parameter, and the rest in its strides.
            # A copy, or the steps that follow would write into the tensors that were given.
            like = parameter if value.shape == parameter.shape else value
            own = torch.empty_like(like, dtype=dtype, device=parameter.device, requires_grad=False)
            state.setdefault(parameter, {})[field] = own.copy_(value)
    if left:
        raise ValueError(f"the checkpoint has optimizer state of no parameter: {sorted(left)[0]!r}")
    return state


def _fits(value: Tensor, parameter: Tensor) -> bool:
    """Whether a state is one number for each of the parameter's, or for its rows or columns (Adafactor)."""
    return value.dim() == parameter.dim() and all(
        own in (1, size) for own, size in zip(value.shape, parameter.shape, strict=True)
    )
