"""What a run is: every setting that decides its result, as one frozen, checked, JSON-able record."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

import torch

from spela import choices
from spela.vectors import VECTOR_KINDS
from spela_kernels import ACTIVATIONS, OBJECTIVES

__all__ = ["RunConfig", "parse_groups"]

# By annotation of a field, what it may hold; bool is no int here. Those that are not named are sequences.
_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "str": (str,),
    "bool": (bool,),
}

# Weights are float32: numbers below its normal ones count as zero there, and larger ones as infinite.
_LEAST, _LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max

# Of any size or count: beyond it nothing fits into memory, and libraries overflow.
MOST = 2**31 - 1
# Methods that change their input themselves, or take blocks alone.
NOT_STANDARDIZED = ("ff", "pepita", "supervised")
_POSITIVE = ("epochs", "batch_size", "kernel_size", "symmetric_dim", "readout", "projection")
_SIZES = dict.fromkeys(_POSITIVE, 1) | dict.fromkeys(
    ("head_epochs", "resize", "width", "head_channels", "head_hidden"), 0
)

_CHOICES: dict[str, Collection[str]] = {
    "method": choices.METHODS,
    "objective": OBJECTIVES,  # the tables themselves: a row may be added at any time
    "conv_objective": OBJECTIVES,
    "activation": ACTIVATIONS,
    "optimizer": choices.OPTIMIZERS,
    "schedule": choices.SCHEDULES,
    "normalize_input": choices.NORMALIZATIONS,
    "precision": choices.PRECISIONS,
    "vectors": VECTOR_KINDS,
    "init": choices.INITS,
    "bias_init": choices.BIAS_INITS,
    "binarise": choices.BINARISED,
    "network": ("", *choices.NETWORKS),
}
_NETWORKS = " or ".join(choices.NETWORKS)


def parse_groups(text: str, num_classes: int) -> int | tuple[int, int] | None:
    """The number of groups in a kernel, as `class_grouping` takes it.

    Args:
        text: "all" (every class its own), "5" (so many in every kernel), "2:10" (drawn from 2..9), or ""
            (drawn from 2..C-1).
        num_classes: C.

    Raises:
        ValueError: If it is none of these.

    Example:
        >>> parse_groups("2:10", 10), parse_groups("all", 10)
        ((2, 10), 10)
    """
    if text == "all":
        return num_classes
    try:
        numbers = [int(part) for part in text.split(":")] if text else []
    except ValueError:
        numbers = [0]
    if len(numbers) > 2 or any(number < 1 for number in numbers):
        raise ValueError(
            f"groups must be all, a number such as 5 or a range such as 2:10, got {text!r}"
        )
    if len(numbers) == 2:
        return numbers[0], numbers[1]
    return numbers[0] if numbers else None


@dataclass(frozen=True)
class RunConfig:
    """The settings of one training run.

    Attributes:
        data: Name of a dataset, or path of a file or folder of one's own.
        recipe: Name of the preset the other values came from.
        method: spela, or a rival on the same hidden layers: backprop (with an output layer), ff
            (Forward-Forward), pepita (with an output layer) or mono (Mono-Forward); on the same blocks: mono
            and predsim (linear heads), classifier (SPELA's heads with a linear classifier in place of class
            vectors) or supervised (SPELA's heads, one gradient through all blocks).
        channels: Kernels of each convolution layer; none: a network of linear layers only.
        kernel_size: Of the convolutions, without padding; each is followed by a 2 x 2 max pool.
        symmetric_dim: Dimension of the convolutions' class vectors.
        projection_std: Standard deviation of the projections at the start.
        groups: Groups a kernel sorts the classes into: all (a class each), a number, or low:high to
            draw it from low..high-1; empty: from 2..C-1.
        share_groups: Whether all convolutions sort the classes alike: kernel k of each into the same groups.
        conv_objective: Local objective of the convolutions.
        conv_scale: Factor of their scores in `softmax`, which are means over kernels and so smaller.
        layers: Output sizes of the linear layers; after convolutions they are the head.
        epochs: Passes over the training data.
        head_epochs: Further passes, for the head on frozen convolutions; 0: both learn together.
        resize: Images are resized to this height and width first; 0: left as they are.
        noise: Standard deviation of the Gaussian noise on all pixels, training and test; full scale is 1.
        test_share: Share of all samples, training and test pooled, that is drawn as the test split (few
            shots: 0.99); 0: the dataset's own split.
        label_noise: Share of the training labels replaced by another class.
        seed: Of class vectors, weights, shuffling and dropout.
        batch_size: Samples a step.
        shuffle: New order every epoch.
        objective: Local objective of the linear layers.
        scale: Factor of the linear layers' cosines in `softmax`.
        activation: Of every linear layer.
        negative_slope: Slope of leaky_relu below zero.
        vectors: How class vectors are placed.
        init: Of the linear layers' weights: default (each method's own) or kaiming-normal (N(0, 2 / inputs),
            biases 0).
        bias_init: Of the linear layers' biases: default (0 for SPELA's, else as `init` says) or uniform
            (U(+-1 / sqrt(inputs)), torch's).
        normalize_input: Row norm before every linear layer (standardized features go without): none, unit
            (1) or rms (sqrt(features)).
        precision: fp32, or bf16: products in bfloat16 over float32 weights and statistics; tests in fp32.
        dropout: Share of each hidden layer's inputs zeroed in training (not the network's input).
        input_dropout: Share of the network's input values zeroed in training.
        binarise: Weights of two values: all (every layer computes with the signs of latent weights, which
            learn straight through), last (the authors': the last layer's weights become their signs after
            every epoch), or empty.
        optimizer: sgd, adam or adamw.
        lr: Initial learning rate per mean-sample loss.
        momentum: Of sgd.
        weight_decay: L2 penalty (decoupled for adamw).
        head_weight_decay: That of the blocks' heads and similarity losses; None: as of their bodies.
        schedule: constant, cosine (to zero, by step) or drop (lr_drop less every 10 epochs).
        lr_drop: What `drop` subtracts, in units of lr.
        diagnostics: After every epoch, look at every layer on fixed training samples.
        network: Instead of channels and layers a network by name, which SPELA cuts into blocks.
        width: Channels of its first convolution, or of a token; 0: its usual one.
        blocks: How many blocks, or layers (as many as there are places to cut at); or conv: instead of
            blocks, SpelaConv2d layers (vgg).
        readout: Most numbers that a block's head reads out of a map.
        head_channels: Of the heads' convolutions of maps; 0: none.
        head_hidden: Outputs of the heads' hidden layers; 0: none.
        projection: Outputs of the heads' projections; their loss is `objective` with `scale`.
        similarity: Weight of the blocks' similarity loss, in [0, 1).
        standardize: Whether the network first centres every feature, or an image's every channel, and divides
            it by its deviation, both of the training samples.
        whiten: Whether the network first whitens patches of 2 x 2 pixels (`PatchWhitening`), by the training
            images.
        augment: Whether training images are cropped (zeros around, 4 pixels) and mirrored at random.
    """

    data: str
    recipe: str
    method: str
    channels: tuple[int, ...]
    kernel_size: int
    symmetric_dim: int
    projection_std: float
    groups: str
    conv_objective: str
    conv_scale: float
    layers: tuple[int, ...]
    epochs: int
    head_epochs: int
    resize: int
    noise: float
    test_share: float
    label_noise: float
    seed: int
    batch_size: int
    shuffle: bool
    objective: str
    scale: float
    activation: str
    negative_slope: float
    vectors: str
    init: str
    normalize_input: str
    precision: str
    dropout: float
    input_dropout: float
    binarise: str
    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    schedule: str
    lr_drop: float
    diagnostics: bool
    # A setting with a default is written only where it differs from that: adding one renames no other run.
    share_groups: bool = False
    bias_init: str = "default"
    network: str = ""
    width: int = 0
    blocks: str = ""
    readout: int = 256
    projection: int = 128
    head_channels: int = 0
    head_hidden: int = 0
    similarity: float = 0.0
    augment: bool = False
    standardize: bool = False
    head_weight_decay: float | None = None
    whiten: bool = False

    def __post_init__(self) -> None:
        self._check_types()
        self._check_names()
        self._take_sizes()
        self._check_layers()
        parse_groups(self.groups, 2)
        self._check_network()
        self._check_numbers()
        self._check_method()

    def _check_types(self) -> None:
        """Refuse values that JSON would not give back as they are, and those that only look right."""
        for field in fields(self):
            value, kind = getattr(self, field.name), str(field.type)
            held = isinstance(value, _TYPES.get(kind, (tuple, list)))
            if not held or (isinstance(value, bool) and kind != "bool"):
                expected = kind.replace(" | ", " or ")
                raise ValueError(f"{field.name} must be {expected}, got {value!r}")

    def _check_names(self) -> None:
        """Refuse names that are in no table."""
        for name, known in _CHOICES.items():
            if getattr(self, name) not in tuple(known):
                raise ValueError(
                    f"unknown {name} {getattr(self, name)!r}: use one of {', '.join(known)}"
                )

    def _take_sizes(self) -> None:
        """Keep sizes as tuples, where they are sizes."""
        for name in ("layers", "channels"):
            sizes = tuple(getattr(self, name))
            object.__setattr__(self, name, sizes)
            if not all(
                isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= MOST for n in sizes
            ):
                raise ValueError(
                    f"{name} must be sizes from 1 to {MOST}, such as 1024,1024, got {sizes}"
                )

    def _check_layers(self) -> None:
        """There is something to train, and the method trains it."""
        if not self.layers and not self.channels and not self.network:
            raise ValueError("layers must name at least one size, such as 1024,1024")
        if self.head_epochs > 0 and not (self.channels and self.layers):
            raise ValueError("head_epochs needs convolutions and a head: set channels and layers")
        if self.head_epochs > 0 and self.method == "backprop":
            raise ValueError("head_epochs is for SPELA: backprop trains the whole network at once")
        if self.channels and self.method not in ("spela", "backprop"):
            raise ValueError(f"method {self.method} is for linear layers: use --model mlp")
        if self.method == "ff" and self.normalize_input == "none":
            raise ValueError(
                "ff needs normalize_input unit or rms: else a layer reads the goodness of the one "
                "before it off the length of its input"
            )

    def _check_network(self) -> None:
        """A network by name has its own layers, and only SPELA cuts it."""
        if not self.network:
            if self.method in ("predsim", "classifier", "supervised"):
                raise ValueError(f"method {self.method} is of blocks: use --model {_NETWORKS}")
            given = " and ".join(name for name in ("blocks", "width") if getattr(self, name))
            if given:
                raise ValueError(f"{given}: of networks by name, use --model {_NETWORKS}")
            return
        names = [name for name in ("channels", "layers", "binarise") if getattr(self, name)]
        names += ["normalize_input"] if self.normalize_input != "none" else []
        if names:
            raise ValueError(
                f"network {self.network} has its own layers: leave {' and '.join(names)} out"
            )
        if self.method in ("ff", "pepita"):
            raise ValueError(f"method {self.method} is for linear layers: use --model mlp")
        counted = self.blocks.isascii() and self.blocks.isdigit() and int(self.blocks) >= 1
        if self.method == "backprop" and self.blocks:
            raise ValueError("backprop trains the whole network at once: leave blocks out")
        if self.blocks == "conv" and (self.network != "vgg" or self.method != "spela"):
            raise ValueError("blocks conv, of SpelaConv2d layers, is for vgg and method spela")
        if self.method != "backprop" and self.blocks not in ("layers", "conv") and not counted:
            raise ValueError(
                f"blocks must be a number such as 3, or layers, or conv, got {self.blocks!r}"
            )

    def _check_numbers(self) -> None:
        """Refuse numbers out of their ranges."""
        for name, least in _SIZES.items():
            if getattr(self, name) < least:
                bound = "at least 1" if least else "0 or more"
                raise ValueError(f"{name} must be {bound}, got {getattr(self, name)}")
            if getattr(self, name) > MOST:
                raise ValueError(f"{name} must be at most 2^31-1, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in 0..2^63-1, got {self.seed}")
        for name in ("lr", "scale", "conv_scale", "projection_std"):
            if not _LEAST <= getattr(self, name) <= _LARGEST:
                raise ValueError(
                    f"{name} must be a positive number that float32 holds, got {getattr(self, name)}"
                )
        for name in ("weight_decay", "head_weight_decay", "lr_drop", "negative_slope", "noise"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= _LARGEST:
                raise ValueError(
                    f"{name} must be 0 or more and in float32's range, got {getattr(self, name)}"
                )
        for name in (
            "momentum",
            "dropout",
            "input_dropout",
            "label_noise",
            "test_share",
            "similarity",
        ):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")

    def _check_method(self) -> None:
        """Refuse settings that the method, or its kind of layers, does not have."""
        if self.bias_init != "default" and self.method != "spela":
            raise ValueError(
                f"bias_init is for SPELA's linear layers, not for method {self.method}"
            )
        if self.share_groups and (self.method != "spela" or not self.channels):
            raise ValueError("share_groups is for SPELA's convolutions: use --model cnn")
        if self.standardize and self.method in NOT_STANDARDIZED:
            raise ValueError(
                f"method {self.method} changes its input itself or takes blocks alone: leave standardize out"
            )
        if self.whiten and not (self.network or self.channels):
            raise ValueError(f"whiten is for convolutions: use --model cnn or {_NETWORKS}")
        if self.whiten and self.standardize:
            raise ValueError("whitened patches are standardized already: leave standardize out")
        if self.input_dropout > 0 and self.method == "ff":
            raise ValueError(
                "method ff writes the label into its input, which dropout would take out: leave "
                "input_dropout out"
            )
        if self.binarise and (self.method != "spela" or self.channels):
            raise ValueError("binarise is for SPELA's linear layers: use method spela, no channels")

    @property
    def total_epochs(self) -> int:
        """All passes over the data, the head's included."""
        return self.epochs + self.head_epochs

    def norm_before(self, index: int) -> str:
        """The row norm before a linear layer, counted from 0: none, unit or rms.

        Standardized features go without: they are of order one, and a sample's length may tell its class.
        """
        first = index == 0 and not self.channels
        return "none" if self.standardize and first else self.normalize_input

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; without those at their default, for settings that have one."""
        values = {**asdict(self), "layers": list(self.layers), "channels": list(self.channels)}
        usual = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in values.items() if value != usual[name]}

    @classmethod
    def from_dict(cls, values: object) -> RunConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: If a setting is missing, unknown, of the wrong type or out of range.
        """
        if not isinstance(values, dict):
            raise ValueError("a run's config must be a JSON object")
        known = {field.name for field in fields(cls)}
        values = {f.name: f.default for f in fields(cls) if f.default is not MISSING} | values
        if set(values) != known:
            wrong = ", ".join(sorted(map(str, set(values) ^ known)))
            raise ValueError(f"a run's config has missing or unknown settings: {wrong}")
        return cls(**values)
