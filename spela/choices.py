"""The names that settings and options choose from. Imports nothing, so that `spela --help` answers at once.

Where a table says what the names mean, they are in its order; a test compares them.
"""

from __future__ import annotations

__all__ = [
    "ACTIVATIONS",
    "ANSWERS",
    "BACKBONES",
    "BENCHMARKS",
    "BIAS_INITS",
    "BINARISED",
    "DATASETS",
    "DTYPES",
    "EXPERIMENTS",
    "EXPORTS",
    "FORMATS",
    "GPUS",
    "GRAPHS",
    "INITS",
    "METHODS",
    "MODELS",
    "NETWORKS",
    "NORMALIZATIONS",
    "OBJECTIVES",
    "OLDEST_OPSET",
    "OPSET",
    "OPTIMIZERS",
    "PARALLEL",
    "PRECISIONS",
    "RECIPES",
    "SCHEDULES",
    "SPLITS",
    "VECTORS",
]

# Of a run.
METHODS = ("spela", "backprop", "ff", "pepita", "mono", "predsim", "classifier", "supervised")
NETWORKS = ("vgg", "cifarnet", "resnet", "vit")  # spela.bodies.NETWORKS
MODELS = ("mlp", "cnn", *NETWORKS)
OBJECTIVES = ("log", "cosine", "angular", "euclidean", "mse", "softmax")  # spela_kernels.OBJECTIVES
ACTIVATIONS = ("leaky_relu", "relu", "tanh", "elu", "gelu", "identity", "prelu")  # as above
VECTORS = ("symmetric", "gaussian", "uniform")  # spela.vectors.VECTOR_KINDS
OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "drop")
NORMALIZATIONS = ("none", "unit", "rms")
PRECISIONS = ("fp32", "bf16")
INITS = ("default", "kaiming-normal")
BIAS_INITS = ("default", "uniform")
GRAPHS = ("auto", "on", "off")
BINARISED = ("", "all", "last")
PARALLEL = ("data", "layers")

# By model; spela.experiments.RECIPES.
_OF_NETWORKS = ("best", "backprop", "supervised", "classifier", "predsim", "mono")
RECIPES = {
    "mlp": (
        *("best", "fewshot", "paper", "tmlr", "backprop", "backprop-sgd", "ff", "pepita", "mono"),
        *("transfer", "transfer-backprop", "transfer-best"),
    ),
    "cnn": ("best", "cnn", "backprop"),
    **dict.fromkeys(NETWORKS, _OF_NETWORKS),
}

# Of data and what reads them.
DATASETS = (  # spela.data.dataset_names()
    *("digits", "fashion-mnist", "mnist", "kmnist", "cifar10", "cifar100", "svhn"),
    *("pets", "aircraft", "food101", "flowers102"),
)
SPLITS = ("test", "train")
ANSWERS = ("last", "mean")
BACKBONES = ("efficientnet-lite0", "resnet50")  # spela.features.backbone_names()

# Of files for other runtimes.
EXPORTS = ("inference", "train-step")
FORMATS = ("onnx", "pt2", "pte")
# The newest operator set that torch's converter writes; `Gelu` exists from 20 on.
OPSET = 25
OLDEST_OPSET = 20

# Of experiments and benchmarks.
EXPERIMENTS = (  # spela.experiments.registry.EXPERIMENTS
    *("mlp", "fewshot", "transfer", "cnn", "cnn-head", "blocks", "ablation"),
    *("memory", "noise", "early-exit"),
)
BENCHMARKS = (  # spela.benchmarks.GROUPS
    *("network_step", "layer_step", "epoch", "memory", "blocks", "small", "busy", "vectors"),
    "scaling",
)
GPUS = ("T4", "A100", "H100", "H200", "B200", "MI300X")  # spela_kernels.cost.roofline.GPUS
DTYPES = ("float32", "float16", "bfloat16")  # spela.benchmarks.modelled.DTYPES
