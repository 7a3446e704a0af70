"""Train a small network on handwritten digits and write the page that goes on training it in a browser.

    npm ci --prefix examples/browser --omit=dev --ignore-scripts
    python examples/browser/build.py --out build/browser
    python -m http.server --bind 127.0.0.1 --directory build/browser 8765

`make browser-demo` runs all three. The folder it writes is whole: any static server will do.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
from pathlib import Path

import torch
from torch import Tensor

from spela import RowNorm, SpelaLinear, SpelaSequential
from spela.data import Dataset, load_dataset, prepare
from spela.export import inference_program, train_step_program, write_onnx
from spela.optim import LocalAdam

HERE = Path(__file__).resolve().parent
RUNTIME = HERE / "node_modules" / "onnxruntime-web" / "dist"
RUNTIME_FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
# Class vectors: ten for the digits, six for what the visitor teaches.
CLASSES = 16
WIDTH = 256
# How a drawing becomes an image like those of the data (page/raster.js): an image of `size` pixels, in whose
# middle a square of `box` pixels holds the drawing; a pen of `pen` pixels whose edge is `edge` wide; and what
# of the drawing lies in the middle, its box or its centre of mass. Pens are as wide as makes drawn digits as
# dark, on average, as those of the data.
DRAWINGS = {
    "digits": {"size": 8, "box": 8, "pen": 1.3, "edge": 1.2, "centre": "box"},
    "mnist": {"size": 28, "box": 20, "pen": 2.4, "edge": 1.0, "centre": "mass"},
}
EPOCHS = {"digits": 80, "mnist": 4}
# Training images that the page remembers, of each class, so that a new one does not drive out the old ones.
REMEMBERED = 100


def warped(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, 1, H, W) turned, slanted, scaled and shifted a little, each in its own way: hands differ."""

    def draw(most: float) -> Tensor:
        return most * (2 * torch.rand(len(x), generator=generator) - 1)

    angle, slant = draw(0.3), draw(0.3)
    rows = torch.stack([angle.cos() * (1 + draw(0.2)), slant - angle.sin(), draw(0.1)], dim=1)
    columns = torch.stack([angle.sin(), angle.cos() * (1 + draw(0.2)), draw(0.1)], dim=1)
    maps = torch.stack([rows, columns], dim=1)  # (B, 2, 3)
    grid = torch.nn.functional.affine_grid(maps, list(x.shape), align_corners=False)
    return torch.nn.functional.grid_sample(x, grid, align_corners=False)


def train(data: Dataset, epochs: int, seed: int) -> tuple[SpelaSequential, LocalAdam]:
    """A network with more class vectors than the data has classes, trained on the data."""
    generator = torch.Generator().manual_seed(seed)
    settings = {"activation": "gelu", "objective": "softmax", "generator": generator}
    net = SpelaSequential(
        torch.nn.Flatten(),
        RowNorm(),
        SpelaLinear(math.prod(data.sample_shape), WIDTH, CLASSES, **settings),
        RowNorm(),
        SpelaLinear(WIDTH, WIDTH, CLASSES, **settings),
    )
    optimizer = LocalAdam(net.parameters(), lr=1e-3)
    x = prepare(data.train_x)
    for epoch in range(1, epochs + 1):
        for batch in torch.randperm(len(x), generator=generator).split(50):
            net.local_step(warped(x[batch], generator), data.train_y[batch], optimizer)
        if epoch % math.ceil(epochs / 4) == 0 or epoch == epochs:
            print(f"epoch {epoch}: test accuracy of each layer {accuracy(net, data)}", flush=True)
    return net.eval(), optimizer


def accuracy(net: SpelaSequential, data: Dataset) -> list[float]:
    """Share of test images that each layer names rightly, among the data's classes."""
    scores = net.eval().layer_scores(prepare(data.test_x))
    found = [(s[:, : data.num_classes].argmax(1) == data.test_y).float().mean() for s in scores]
    net.train()
    return [round(share.item(), 4) for share in found]


def remembered(data: Dataset) -> tuple[Tensor, Tensor]:
    """The first images of every class as bytes 0..255, and their classes."""
    rows = torch.cat(
        [(data.train_y == c).nonzero()[:REMEMBERED, 0] for c in range(data.num_classes)]
    )
    return (255 * prepare(data.train_x[rows])).round().to(torch.uint8), data.train_y[rows]


def write_model(data: Dataset, net: SpelaSequential, optimizer: LocalAdam, folder: Path) -> None:
    """What the page loads: both functions, the weights they start from, images to remember, facts."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = data.sample_shape
    step = train_step_program(net, optimizer, shape)
    write_onnx(step, folder / "step.onnx", weights_apart=True)
    answers = inference_program(net, shape, weights_as_inputs=True)
    write_onnx(answers, folder / "answers.onnx", weights_apart=True)
    (folder / "answers.safetensors").unlink()  # step.safetensors holds these weights too
    images, classes = remembered(data)
    (folder / "remembered.bin").write_bytes(images.numpy().tobytes())
    facts = {
        "data": data.name,
        "names": list(data.class_names),
        "most_classes": CLASSES,
        "scale": [layer.scale for layer in net.local_layers],
        "lr": 1e-3,
        "accuracy": accuracy(net, data),
        "drawing": DRAWINGS[data.name],
        "remembered": classes.tolist(),
        "answers": {"inputs": list(answers.inputs), "outputs": list(answers.outputs)},
        "step": {"inputs": list(step.inputs), "outputs": list(step.outputs)},
        # Weights that a browser has kept belong to this network and to no other.
        "model": hashlib.sha256((folder / "step.safetensors").read_bytes()).hexdigest()[:16],
    }
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def write_page(out: Path) -> None:
    """The page, the runtime, and the worker that keeps them all for a visit without a network."""
    shutil.copytree(HERE / "page", out, dirs_exist_ok=True)
    (out / "runtime").mkdir(exist_ok=True)
    for name in RUNTIME_FILES:
        shutil.copyfile(RUNTIME / name, out / "runtime" / name)
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != "offline.js")
    version = hashlib.sha256()
    for path in files:
        version.update(path.read_bytes())
    names = ["./", *(path.relative_to(out).as_posix() for path in files)]
    kept = f"const VERSION = {json.dumps(version.hexdigest()[:16])};\nconst FILES = {json.dumps(names)};\n"
    worker = (HERE / "page" / "offline.js").read_text(encoding="utf-8")
    (out / "offline.js").write_text(kept + worker, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write; replaced if it was built here"
    )
    parser.add_argument("--data", choices=sorted(DRAWINGS), default="digits")
    parser.add_argument("--data-root", type=Path, help="where MNIST's four idx files are")
    parser.add_argument("--epochs", type=int, help="default: 80 of the digits, 4 of MNIST")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.epochs is not None and options.epochs < 1:
        parser.error("--epochs must be at least 1")
    if options.data_root and options.data == "digits":
        parser.error("--data-root is for --data mnist: the digits come with scikit-learn")
    out = options.out
    ours = all((out / name).is_file() for name in ("offline.js", "model/facts.json"))
    if out.exists() and any(out.iterdir()) and not ours:
        raise SystemExit(f"{out} holds other files: give --out a folder that is empty or not there")
    missing = [name for name in RUNTIME_FILES if not (RUNTIME / name).is_file()]
    if missing:
        raise SystemExit(
            f"onnxruntime-web is not installed ({missing[0]} is missing): "
            "npm ci --prefix examples/browser --omit=dev --ignore-scripts"
        )
    try:
        data = load_dataset(options.data, options.data_root)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    torch.set_num_threads(min(2, torch.get_num_threads()))  # steps of 50 samples keep no more busy
    net, optimizer = train(data, options.epochs or EPOCHS[data.name], options.seed)
    if out.exists():
        shutil.rmtree(out)
    write_model(data, net, optimizer, out / "model")
    write_page(out)
    print(f"{out}: serve this folder, for example by python -m http.server --directory {out}")


if __name__ == "__main__":
    main()
