"""What the tests' processes do: `python workers.py FOLDER` runs every case and leaves its tensors there."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from spela import RowNorm, SpelaBlock, SpelaConv2d, SpelaLinear, SpelaSequential
from spela.data import Dataset
from spela.distributed import (
    DataParallelSequential,
    LayerParallelSequential,
    Ranks,
    run_parallel,
)
from spela.experiments import make_config
from spela.optim import LocalAdam, LocalSGD
from spela.training import RunConfig, batch_statistics

CLASSES = 5
# The last are shorter: unequal parts, and fewer samples than processes.
SIZES = (8, 8, 8, 8, 8, 7, 1)


def mlp(dtype: torch.dtype) -> SpelaSequential:
    g = torch.Generator().manual_seed(0)
    options = {"objective": "softmax", "generator": g, "dtype": dtype, "activation": "prelu"}
    return SpelaSequential(
        nn.Flatten(),
        SpelaLinear(36, 24, CLASSES, **options),
        RowNorm("rms"),
        nn.Dropout(0.3),
        SpelaLinear(24, 20, CLASSES, **options),
        nn.Dropout(0.2),
        SpelaLinear(20, 16, CLASSES, **options),
    )


def cnn(dtype: torch.dtype) -> SpelaSequential:
    g = torch.Generator().manual_seed(0)
    conv = {"symmetric_dim": 6, "objective": "softmax", "generator": g, "dtype": dtype}
    return SpelaSequential(
        SpelaConv2d(1, 6, 3, CLASSES, output_size=2, **conv),
        SpelaConv2d(6, 4, 1, CLASSES, output_size=2, pool=None, **conv),
        nn.Flatten(),
        nn.Dropout(0.2),
        SpelaLinear(16, 8, CLASSES, generator=g, dtype=dtype),
    )


def blocks(dtype: torch.dtype) -> SpelaSequential:
    """Heads with batch norms of their own; the last batch is one sample."""
    g = torch.Generator().manual_seed(0)
    bodies = [
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.LeakyReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LeakyReLU()),
    ]
    for parameter in (p for body in bodies for p in body.parameters()):
        nn.init.normal_(parameter, std=0.2, generator=g)
    x, made = torch.zeros(2, 1, 6, 6, dtype=dtype), []
    for body in bodies:
        body.to(dtype)
        made.append(SpelaBlock(body, CLASSES, x, channels=3, hidden=6, generator=g))
        x = body(x).detach()
    return SpelaSequential(*made)


def batches(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(n, 1, 6, 6, generator=g, dtype=dtype),
            torch.randint(CLASSES, (n,), generator=g),
        )
        for n in SIZES
    ]


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return LocalAdam(parameters, lr=0.01)


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return LocalSGD(parameters, lr=0.1, momentum=0.9)


def train(
    net: SpelaSequential, optimizer: torch.optim.Optimizer, name: str = ""
) -> dict[str, Tensor]:
    """Train on all batches, those of a case named bf16 in 16 bits, then score some.

    Returns:
        Losses, scores, weights and buffers.
    """
    torch.manual_seed(7)
    data = batches(net[-1].vectors.dtype)
    if isinstance(net, LayerParallelSequential):
        net.expect(list(SIZES))
    with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in name):
        losses = [net.local_step(x, target, optimizer) for x, target in data]
    net.eval()
    x = torch.cat([x for x, _ in data])
    with torch.no_grad(), batch_statistics(net):
        scores = [*net.layer_scores(x), *net.layer_scores(x[:1])]
    state = {k: v.clone() for k, v in net.state_dict().items() if not v.is_meta}
    return {
        "losses": torch.stack(losses),
        **{f"scores.{i}": value.contiguous() for i, value in enumerate(scores)},
        **state,
    }


# Name: network, dtype, optimizer, layers frozen.
CASES = {
    "mlp adam": (mlp, torch.float64, adam, ()),
    "mlp sgd": (mlp, torch.float64, sgd, (0,)),
    "cnn adam": (cnn, torch.float64, adam, ()),
    "cnn sgd": (cnn, torch.float64, sgd, ()),
    "mlp adam float32": (mlp, torch.float32, adam, ()),
    "cnn sgd float32": (cnn, torch.float32, sgd, (1,)),
    "cnn adam float32": (cnn, torch.float32, adam, ()),
    "blocks sgd": (blocks, torch.float64, sgd, ()),
    "blocks sgd float32": (blocks, torch.float32, sgd, ()),
    "mlp sgd float32 bf16": (mlp, torch.float32, sgd, ()),
    "cnn sgd float32 bf16": (cnn, torch.float32, sgd, ()),
    "blocks sgd float32 bf16": (blocks, torch.float32, sgd, ()),
}


def start(name: str) -> SpelaSequential:
    build, dtype, _, frozen = CASES[name]
    net = build(dtype)
    for index in frozen:
        net.local_layers[index].requires_grad_(False)
    return net


def config(**changes: object) -> RunConfig:
    settings = {"layers": (12, 10, 8), "epochs": 2, "batch_size": 8, "head_epochs": 0} | changes
    return make_config("little", "best", 3, **settings)  # type: ignore[arg-type]


def dataset() -> Dataset:
    g = torch.Generator().manual_seed(2)
    y = torch.arange(60) % CLASSES
    x = torch.randn(60, 1, 6, 6, generator=g) + y[:, None, None, None]
    names = tuple("abcde")
    return Dataset("little", x[:45], y[:45], x[45:], y[45:], CLASSES, names)


CNN_RUN = {"model": "cnn", "channels": (4,), "kernel_size": 3, "layers": (8,), "head_epochs": 1}
BLOCK_RUN = {
    "model": "resnet",
    "width": 4,
    "blocks": "3",
    "layers": (),
    "head_hidden": 6,
    "head_weight_decay": 20.0,
}


def main(out: Path) -> None:
    ranks = Ranks.join("cpu", 120)
    for name, (_, _, optimizer, _) in CASES.items():
        forms = {"data": DataParallelSequential(start(name), ranks)}
        forms["layers"] = LayerParallelSequential(start(name), ranks, (1, 6, 6), in_flight=2)
        for form, net in forms.items():
            held = [p for p in net.parameters() if not p.is_meta]
            save_file(train(net, optimizer(held), name), out / f"{name} {form} {ranks.rank}")
    for form in ("data", "layers"):
        run_parallel(config(), dataset(), out / f"run-{form}", ranks, form)
        run_parallel(config(), dataset(), out / "half" / form, ranks, form, resume=True)
        run_parallel(config(**CNN_RUN), dataset(), out / f"cnn-{form}", ranks, form)
        run_parallel(config(**BLOCK_RUN), dataset(), out / f"blocks-{form}", ranks, form)
        run_parallel(config(), dataset(), out / f"run-{form}", ranks, form, resume=True)
        more, longer = out / f"more-{form}", config(epochs=3)
        run_parallel(config(), dataset(), more, ranks, form)
        run_parallel(longer, dataset(), more, ranks, form, resume=True, extend=True)
        message = ""
        try:
            run_parallel(config(), dataset(), out / "run-data", ranks, form)
        except ValueError as error:
            message = str(error)
        (out / f"refused {form} {ranks.rank}").write_text(message)
    ranks.leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
