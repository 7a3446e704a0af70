"""The options of `spela train`: a setting of the run each, None where the recipe's value stays."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from spela import choices
from spela.cli.options import COMPUTING, DATA, one_of, path_option

__all__ = [
    "Activation",
    "Augment",
    "BatchSize",
    "BiasInit",
    "Blocks",
    "Channels",
    "ConvObjective",
    "ConvScale",
    "Data",
    "Diagnostics",
    "Dropout",
    "Epochs",
    "Graph",
    "Groups",
    "HeadChannels",
    "HeadEpochs",
    "HeadHidden",
    "HeadWeightDecay",
    "Init",
    "KernelSize",
    "Layers",
    "Lr",
    "Model",
    "Momentum",
    "NegativeSlope",
    "Noise",
    "NormalizeInput",
    "Objective",
    "Optimizer",
    "Out",
    "Precision",
    "Projection",
    "ProjectionStd",
    "Readout",
    "Recipe",
    "Resize",
    "Resume",
    "Scale",
    "Schedule",
    "Seed",
    "ShareGroups",
    "Shuffle",
    "Similarity",
    "Standardize",
    "SymmetricDim",
    "Tensorboard",
    "Vectors",
    "WeightDecay",
    "Whiten",
    "Width",
]

# Headings of help.
_OPTIMIZER = "Optimizer"
_LINEAR = "Linear layers (--model mlp, or the head of a cnn)"
_CONVOLUTIONS = "Convolution layers (--model cnn)"
_BLOCKS = f"Networks in blocks (--model {', '.join(choices.NETWORKS)})"
_RECORDS = "Records"


def _setting(panel: str, help: str, *flags: str, metavar: str | None = None) -> Any:
    return typer.Option(*flags, help=help, rich_help_panel=panel, metavar=metavar)


_RECIPES = tuple(dict.fromkeys(name for names in choices.RECIPES.values() for name in names))
_NETWORK_RECIPES = choices.RECIPES[choices.NETWORKS[0]]

Out = Annotated[
    Path, path_option(help="Folder to create for the run (or to continue, with --resume).")
]
Data = Annotated[
    str,
    one_of(
        choices.DATASETS,
        help="What to train on",
        more="; or an .npz or .safetensors file, or a folder of idx files",
    ),
]
Model = Annotated[
    str,
    one_of(
        choices.MODELS,
        help="Kind of network (linear layers, convolutions, or a network that is cut into blocks)",
    ),
]
Recipe = Annotated[
    str,
    typer.Option(
        help="Named settings that the other options change. "
        f"For mlp: {', '.join(choices.RECIPES['mlp'])}. For cnn: {', '.join(choices.RECIPES['cnn'])}. "
        f"For networks in blocks: {', '.join(_NETWORK_RECIPES)}.",
        autocompletion=lambda incomplete: [n for n in _RECIPES if n.startswith(incomplete)],
        metavar="NAME",
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        help="Passes over the training data. With --resume it may be larger than before: with the "
        "schedules constant and drop the result is that of one longer run; cosine jumps back up."
    ),
]
Seed = Annotated[
    int, typer.Option(help="Seed of class vectors, weights, order of samples and dropout.")
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue the run in --out from its last finished epoch; give its options again.",
    ),
]

BatchSize = Annotated[int | None, _setting(_OPTIMIZER, "Samples a step.")]
Optimizer = Annotated[
    str | None,
    one_of(choices.OPTIMIZERS, help="Optimizer of all layers", panel=_OPTIMIZER),
]
Lr = Annotated[float | None, _setting(_OPTIMIZER, "Learning rate at the start.")]
Schedule = Annotated[
    str | None,
    one_of(
        choices.SCHEDULES,
        help="How the learning rate falls",
        panel=_OPTIMIZER,
        more=" (less every 10 epochs)",
    ),
]
Momentum = Annotated[float | None, _setting(_OPTIMIZER, "Momentum of sgd.")]
WeightDecay = Annotated[float | None, _setting(_OPTIMIZER, "L2 penalty on the weights.")]
Shuffle = Annotated[
    bool | None,
    _setting(
        _OPTIMIZER,
        "Draw samples in a new order every epoch, or in the file's order.",
        "--shuffle/--no-shuffle",
    ),
]
Precision = Annotated[
    str | None,
    one_of(
        choices.PRECISIONS,
        help="Precision of products",
        panel=_OPTIMIZER,
        more=" (16-bit products over float32 weights and statistics)",
    ),
]

Layers = Annotated[
    str | None,
    _setting(
        _LINEAR,
        "Output sizes of the linear layers, such as 1024,1024,1024.",
        "--layers",
        "--head",
        metavar="SIZES",
    ),
]
Objective = Annotated[
    str | None,
    one_of(
        choices.OBJECTIVES,
        help="Local objective, of the heads of blocks too",
        panel=_LINEAR,
    ),
]
Scale = Annotated[
    float | None, _setting(_LINEAR, "Factor of the cosines in the objective softmax.")
]
Activation = Annotated[
    str | None,
    one_of(choices.ACTIVATIONS, help="Activation of every layer", panel=_LINEAR),
]
NegativeSlope = Annotated[float | None, _setting(_LINEAR, "Slope of leaky_relu below zero.")]
NormalizeInput = Annotated[
    str | None,
    one_of(
        choices.NORMALIZATIONS,
        help="Length that the inputs of every layer (with --standardize: but the first) are brought to",
        panel=_LINEAR,
        more=" (root mean square 1)",
    ),
]
Vectors = Annotated[
    str | None,
    one_of(choices.VECTORS, help="How class vectors are placed", panel=_LINEAR),
]
Init = Annotated[str | None, one_of(choices.INITS, help="Weights at the start", panel=_LINEAR)]
BiasInit = Annotated[
    str | None,
    one_of(
        choices.BIAS_INITS,
        help="Biases at the start",
        panel=_LINEAR,
        more=" (default: zeros; uniform: as nn.Linear's)",
    ),
]
Dropout = Annotated[
    float | None,
    _setting(_LINEAR, "Share of inputs dropped: of layers after the first, of every block's head."),
]

Channels = Annotated[
    str | None,
    _setting(_CONVOLUTIONS, "Kernels of each convolution layer, such as 128,128.", metavar="SIZES"),
]
KernelSize = Annotated[int | None, _setting(_CONVOLUTIONS, "Side of the kernels in pixels.")]
SymmetricDim = Annotated[int | None, _setting(_CONVOLUTIONS, "Dimension of the class vectors.")]
ProjectionStd = Annotated[
    float | None,
    _setting(
        _CONVOLUTIONS,
        "Standard deviation of the projections at the start, of those of blocks too.",
    ),
]
Groups = Annotated[
    str | None,
    _setting(
        _CONVOLUTIONS,
        "Groups that a kernel sorts the classes into: all (a class each), a number such as 5, or a "
        "range to draw it from, such as 2:10.",
    ),
]
ShareGroups = Annotated[
    bool | None,
    _setting(
        _CONVOLUTIONS,
        "Let all layers sort the classes alike, or each in its own way.",
        "--share-groups/--own-groups",
    ),
]
ConvObjective = Annotated[
    str | None,
    one_of(choices.OBJECTIVES, help="Local objective", panel=_CONVOLUTIONS),
]
ConvScale = Annotated[
    float | None, _setting(_CONVOLUTIONS, "Factor of the scores in the objective softmax.")
]
HeadEpochs = Annotated[
    int | None,
    _setting(
        _CONVOLUTIONS,
        "Further passes for the head alone, on frozen convolutions; 0: both learn together.",
    ),
]

Blocks = Annotated[
    str | None,
    _setting(
        _BLOCKS,
        "Number of blocks, such as 3; or layers: as many as the network has; or conv: instead of "
        "blocks, layers of SpelaConv2d (vgg).",
    ),
]
Width = Annotated[
    int | None,
    _setting(_BLOCKS, "Channels of the first convolution, or numbers in a token; 0: the usual."),
]
Readout = Annotated[
    int | None, _setting(_BLOCKS, "Most numbers that a block's head reads out of a map.")
]
HeadChannels = Annotated[
    int | None,
    _setting(
        _BLOCKS,
        "Channels of a 3 x 3 convolution in every block's head, where it sees maps; 0: none.",
    ),
]
HeadHidden = Annotated[
    int | None, _setting(_BLOCKS, "Outputs of a hidden layer in every block's head; 0: none.")
]
Projection = Annotated[int | None, _setting(_BLOCKS, "Outputs of the projection in every head.")]
Similarity = Annotated[
    float | None, _setting(_BLOCKS, "Weight of the blocks' similarity loss, from 0 to below 1.")
]
HeadWeightDecay = Annotated[
    float | None,
    _setting(_BLOCKS, "L2 penalty on the blocks' heads (default: that of --weight-decay)."),
]

Resize = Annotated[
    int | None, _setting(DATA, "Resize images to this many pixels a side; 0: leave them.")
]
Noise = Annotated[
    float | None,
    _setting(DATA, "Standard deviation of noise added to all pixels, which are 0 to 1."),
]
Augment = Annotated[
    bool | None,
    _setting(DATA, "Crop and mirror training images at random.", "--augment/--no-augment"),
]

Standardize = Annotated[
    bool | None,
    _setting(
        DATA,
        "Centre each feature and divide it by its deviation, inside the network (images: each channel).",
        "--standardize/--no-standardize",
    ),
]

Whiten = Annotated[
    bool | None,
    _setting(
        DATA,
        "Whiten patches of 2 x 2 pixels first, inside the network: convolutions learn faster from them.",
        "--whiten/--no-whiten",
    ),
]

Diagnostics = Annotated[
    bool,
    _setting(
        _RECORDS,
        "Record each epoch every layer's dead units, cosine margins and agreement with backprop.",
        "--diagnostics",
    ),
]
Tensorboard = Annotated[
    bool,
    _setting(_RECORDS, "Also write TensorBoard files to OUT/tensorboard.", "--tensorboard"),
]
Graph = Annotated[
    str,
    one_of(
        choices.GRAPHS,
        help="Whether a training step is one CUDA graph, with the same result",
        panel=COMPUTING,
        more=" (auto: on a GPU, where it can be; a warning says why not; on: else the run fails)",
    ),
]
