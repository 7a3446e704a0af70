"""Calls that each command's help shows, as a newcomer would type them."""

from __future__ import annotations

__all__ = ["EXAMPLES", "START", "shown"]

START = (
    "spela demo",
    "spela train --data digits --layers 256,256 --epochs 20 --out runs/digits",
    "spela evaluate runs/digits",
)

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("spela demo", "spela demo --out runs/first --threads 4"),
    "train": (
        "spela train --data digits --layers 256,256 --epochs 20 --out runs/digits",
        "spela train --data my.npz --objective softmax --lr 0.001 --out runs/mine",
        "spela train --model cnn --channels 32,64 --head 128 --out runs/cnn",
        "spela train --data cifar10 --model resnet --blocks 3 --out runs/blocks",
        "spela train --data digits --recipe backprop --out runs/backprop",
    ),
    "evaluate": (
        "spela evaluate runs/digits",
        "spela evaluate runs/digits --split train",
        "spela evaluate runs/digits --exit-loss 0.002 --json",
    ),
    "predict": (
        "spela predict runs/digits drawing.png",
        "spela predict runs/digits folder-of-images",
        "spela predict runs/mine samples.npz > labels.tsv",
        "spela predict runs/mine samples.npz --json",
    ),
    "export": (
        "spela export runs/digits --out digits.onnx",
        "spela export runs/digits --what train-step --batch-size 32 --out step.onnx",
        "spela export runs/digits --out digits.pt2",
        "spela export runs/digits --what train-step --weights-apart --out step.onnx",
    ),
    "reproduce": (
        "spela reproduce mlp --quick",
        "spela reproduce mlp --data fashion-mnist --seeds 0",
        "spela reproduce all --rows 'best*' --jobs 2 --out results",
        "spela reproduce all --report-only",
    ),
    "features": (
        "spela features --data cifar10 --train-samples 5000",
        "spela features --data pets --size 224 --out pets.safetensors",
        "spela train --data pets.safetensors --recipe transfer-best --out runs/pets",
    ),
    "bench": (
        "spela bench --quick",
        "spela bench layer_step memory --threads 1 --json figures.json",
        "spela bench --model --gpu A100 --dtype bfloat16",
    ),
    "info": (
        "spela info",
        "spela info runs/digits",
        "spela info runs/digits --card --out card.md",
    ),
}


def shown(calls: tuple[str, ...]) -> str:
    """Calls as the last paragraph of a help."""
    return "Examples:\n" + "\n".join(f"  {call}" for call in calls)
