"""The options of `spela train`: a setting of the run each, None where the recipe's value stays."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spela.cli.options import path_option
from spela.data import dataset_names
from spela.experiments import NETWORKS, RECIPES
from spela_kernels import ACTIVATIONS, OBJECTIVES

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
    "HeadEpochs",
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
    "SymmetricDim",
    "Tensorboard",
    "Vectors",
    "WeightDecay",
    "Width",
]

_RECIPE_HELP = "Preset; " + "; ".join(
    f"for {model}: {', '.join(recipes)}" for model, recipes in RECIPES.items()
)

Out = Annotated[Path, path_option(help="Run folder to create (or continue, with --resume).")]
Data = Annotated[
    str,
    typer.Option(
        help=f"{', '.join(dataset_names())}, an .npz or .safetensors file, or a folder of idx files."
    ),
]
Model = Annotated[
    str,
    typer.Option(
        help="mlp (linear layers), cnn (convolutions, and perhaps a head), or a network that is cut into "
        f"blocks: {', '.join(NETWORKS)}."
    ),
]
Width = Annotated[
    int | None,
    typer.Option(help="Of such a network: channels of its first convolution, or of a token."),
]
Blocks = Annotated[
    str | None,
    typer.Option(
        help="Of such a network: how many, such as 3; or layers: as many as there are; or conv: instead, "
        "layers of SpelaConv2d (vgg)."
    ),
]
Readout = Annotated[
    int | None, typer.Option(help="Most numbers that a block's head reads out of a map.")
]
HeadChannels = Annotated[
    int | None,
    typer.Option(
        help="Channels of a 3 x 3 convolution in every block's head, where it sees maps; 0: none."
    ),
]
HeadHidden = Annotated[
    int | None, typer.Option(help="Outputs of a hidden layer in every block's head; 0: none.")
]
Projection = Annotated[int | None, typer.Option(help="Outputs of a head's projection.")]
Similarity = Annotated[float | None, typer.Option(help="Weight of the blocks' similarity loss.")]
Augment = Annotated[
    bool | None,
    typer.Option("--augment/--no-augment", help="Crop and mirror training images at random."),
]
Recipe = Annotated[str, typer.Option(help=_RECIPE_HELP)]
Layers = Annotated[
    str | None,
    typer.Option("--layers", "--head", help="Output sizes of the linear layers: 1024,1024,1024."),
]
Channels = Annotated[
    str | None, typer.Option(help="Kernels of each convolution layer, such as 128,128.")
]
KernelSize = Annotated[int | None, typer.Option(help="Of the convolutions, in pixels.")]
SymmetricDim = Annotated[
    int | None, typer.Option(help="Dimension of the convolutions' class vectors.")
]
ProjectionStd = Annotated[
    float | None, typer.Option(help="Of the projections of convolutions or blocks at the start.")
]
Groups = Annotated[
    str | None,
    typer.Option(help="Class groups of a kernel: all, a number, or a range as 2:10."),
]
ShareGroups = Annotated[
    bool | None,
    typer.Option(
        "--share-groups/--own-groups",
        help="All convolutions sort the classes alike, or each in its own way.",
    ),
]
ConvObjective = Annotated[str | None, typer.Option(help="Of the convolutions.")]
ConvScale = Annotated[
    float | None, typer.Option(help="Factor of the convolutions' scores in softmax.")
]
Resize = Annotated[int | None, typer.Option(help="Images to this many pixels a side.")]
Noise = Annotated[
    float | None, typer.Option(help="Standard deviation of noise on all pixels (0..1).")
]
Epochs = Annotated[
    int | None,
    typer.Option(
        help="Passes over the training data. With --resume it may be larger than before: the learning "
        "rate goes on at its place in the longer schedule, where cosine jumps back up, so that the "
        "result is not that of one run of so many epochs; constant and drop give the same as one run."
    ),
]
HeadEpochs = Annotated[
    int | None,
    typer.Option(help="Further passes for the head alone, on frozen convolutions (0: together)."),
]
Seed = Annotated[int, typer.Option(help="Of vectors, weights, shuffling and dropout.")]
BatchSize = Annotated[int | None, typer.Option(help="Samples a step.")]
Objective = Annotated[str | None, typer.Option(help=f"{', '.join(OBJECTIVES)}.")]
Scale = Annotated[float | None, typer.Option(help="Factor of the cosines in softmax.")]
Activation = Annotated[str | None, typer.Option(help=f"{', '.join(ACTIVATIONS)}.")]
NegativeSlope = Annotated[float | None, typer.Option(help="Of leaky_relu.")]
Vectors = Annotated[str | None, typer.Option(help="symmetric, gaussian, uniform.")]
Init = Annotated[str | None, typer.Option(help="default, kaiming-normal.")]
BiasInit = Annotated[str | None, typer.Option(help="default (zeros), uniform (as nn.Linear's).")]
NormalizeInput = Annotated[
    str | None, typer.Option(help="Row norm before every layer: none, unit, rms.")
]
Precision = Annotated[
    str | None,
    typer.Option(help="fp32, or bf16: 16-bit products over float32 weights and statistics."),
]
Dropout = Annotated[float | None, typer.Option(help="On the inputs of layers after the first.")]
Optimizer = Annotated[str | None, typer.Option(help="sgd, adam, adamw.")]
Lr = Annotated[float | None, typer.Option(help="Initial learning rate.")]
Momentum = Annotated[float | None, typer.Option(help="Of sgd.")]
WeightDecay = Annotated[float | None, typer.Option(help="L2 penalty.")]
HeadWeightDecay = Annotated[
    float | None, typer.Option(help="L2 penalty of the blocks' heads (default: --weight-decay's).")
]
Schedule = Annotated[str | None, typer.Option(help="constant, cosine, drop.")]
Shuffle = Annotated[
    bool | None, typer.Option("--shuffle/--no-shuffle", help="New order every epoch.")
]
Diagnostics = Annotated[
    bool,
    typer.Option(
        "--diagnostics",
        help="Each epoch: dead units, cosine margins, agreement with backprop of every layer.",
    ),
]
Tensorboard = Annotated[
    bool,
    typer.Option("--tensorboard", help="Also write TensorBoard files to OUT/tensorboard."),
]
Graph = Annotated[
    str,
    typer.Option(
        help="Whether a training step is one CUDA graph, with the same result: auto (on a GPU, where it can "
        "be; a warning says why not), on (else the run fails), off."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")]
