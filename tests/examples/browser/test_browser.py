"""The page that learns in a browser: its images of drawings by value, and the page in headless Chromium."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load_file

from spela.data import load_dataset

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).resolve().parent
EXAMPLE = ROOT / "examples" / "browser"
NODE = shutil.which("node")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
INSTALLED = all(
    (EXAMPLE / "node_modules" / name).is_dir() for name in ("onnxruntime-web", "playwright-core")
)
DIGITS = json.loads((HERE / "strokes.json").read_text("utf-8"))
FORMS = runpy.run_path(str(EXAMPLE / "build.py"))["DRAWINGS"]

needs_node = pytest.mark.skipif(NODE is None, reason="needs Node.js")
needs_browser = pytest.mark.skipif(
    not (NODE and CHROMIUM and INSTALLED),
    reason="needs Node.js, Chromium and `npm ci --prefix examples/browser --ignore-scripts`",
)
pytestmark = pytest.mark.browser

RASTER = """
const [module, text] = process.argv.slice(1);
const { image, varied } = await import(module);
const { drawings, form, turn } = JSON.parse(text);
const drawn = drawings.map((strokes) => (turn === null ? strokes : varied(strokes, () => turn)));
const seen = drawn.map((strokes) => [...image(strokes, form)]);
console.log(JSON.stringify(seen));
"""


def _images(drawings: list[Any], form: dict[str, Any], turn: float | None = None) -> np.ndarray:
    """(N, size, size) images that the page makes of drawings, in Node; `turn`: all its random numbers."""
    given = json.dumps({"drawings": drawings, "form": form, "turn": turn})
    module = (EXAMPLE / "page" / "raster.js").as_uri()
    done = subprocess.run(
        [str(NODE), "--input-type=module", "-e", RASTER, module, given],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return np.array(json.loads(done.stdout)).reshape(-1, form["size"], form["size"])


def _expected(strokes: list[Any], form: dict[str, Any]) -> np.ndarray:
    """(size, size): the same by NumPy, from dense points along the lines."""
    size, pen = form["size"], form["pen"]
    dense = []
    for stroke in strokes:
        points = np.array(stroke, float)
        steps = np.linspace(0, 1, 400)[:, None]
        dense += [a + steps * (b - a) for a, b in pairwise(points)]
        dense.append(points[:1])
    points = np.concatenate(dense)
    low, high = points.min(0), points.max(0)
    points = (points - (low + high) / 2) * (form["box"] - pen) / max(
        (high - low).max(), 0.1
    ) + size / 2
    middles = np.arange(size) + 0.5

    def ink(points: np.ndarray) -> np.ndarray:
        apart = np.hypot(
            middles[None, :, None] - points[:, 0], middles[:, None, None] - points[:, 1]
        )
        return np.clip((pen / 2 - apart.min(-1)) / form["edge"] + 0.5, 0, 1)

    image = ink(points)
    if form["centre"] == "mass":
        mass = (
            np.array([(image.sum(0) * middles).sum(), (image.sum(1) * middles).sum()]) / image.sum()
        )
        image = ink(points + size / 2 - mass)
    return image


@needs_node
@pytest.mark.parametrize("name", FORMS)
def test_drawings_become_the_images_that_numpy_makes(name):
    moved = [
        [[0.1 + 0.3 * x, 0.6 + 0.3 * y] for x, y in s] for s in DIGITS["5"]
    ]  # small, in a corner
    dot, line = [[[0.9, 0.1]]], [[[0.2, 0.5], [0.9, 0.5]]]
    drawings = [*DIGITS.values(), moved, dot, line]
    found = _images(drawings, FORMS[name])
    for image, strokes in zip(found, drawings, strict=True):
        np.testing.assert_allclose(image, _expected(strokes, FORMS[name]), atol=2e-3)
    np.testing.assert_allclose(
        found[10], found[5], atol=1e-6
    )  # wherever and however large it is drawn


@needs_node
def test_drawings_look_like_the_digits_that_the_network_was_trained_on():
    data = load_dataset("digits")
    train, classes = data.train_x[:, 0].numpy(), data.train_y.numpy()
    drawn = _images(list(DIGITS.values()), FORMS["digits"])
    # As dark on average, with as many pixels of full ink and of bare paper.
    assert drawn.mean() == pytest.approx(train.mean(), abs=0.02)
    assert (drawn > 0.75).mean() == pytest.approx((train > 0.75).mean(), abs=0.03)
    assert (drawn < 0.01).mean() == pytest.approx((train < 0.01).mean(), abs=0.06)
    for digit, image in enumerate(drawn):
        same = train[classes == digit]
        # From the upper edge to the lower, and in the middle.
        assert (same > 0).any(2).all()
        assert (image > 0).any(1).all()
        column = (image.sum(0) * np.arange(8)).sum() / image.sum()
        theirs = (same.sum(1) * np.arange(8)).sum(1) / same.sum((1, 2))
        assert np.quantile(theirs, 0.01) - 0.1 < column < np.quantile(theirs, 0.99) + 0.1, digit
        # Nearer to the mean image of its own class than to those of most others.
        apart = [np.linalg.norm(image - train[classes == other].mean(0)) for other in range(10)]
        assert sorted(apart).index(apart[digit]) <= 2, digit


@needs_node
def test_variations_turn_slant_and_scale():
    form = FORMS["digits"]
    same = _images([DIGITS["4"]], form)[0]
    np.testing.assert_allclose(
        _images([DIGITS["4"]], form, turn=0.5)[0], same, atol=1e-6
    )  # all draws 0
    angle, slant, wide, high = 0.2, 0.25, 1.15, 1.15  # all draws at their most
    turned = [
        [
            [
                np.cos(angle) * wide * x + (slant - np.sin(angle)) * y,
                np.sin(angle) * x + np.cos(angle) * high * y,
            ]
            for x, y in stroke
        ]
        for stroke in DIGITS["4"]
    ]
    found = _images([DIGITS["4"]], form, turn=1.0)[0]
    np.testing.assert_allclose(found, _expected(turned, form), atol=2e-3)
    assert np.abs(found - same).max() > 0.2


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A page built on the digits and served: the environment of its tests."""
    folder = tmp_path_factory.mktemp("browser")
    script = EXAMPLE / "build.py"
    command = [sys.executable, str(script), "--out", str(folder / "site"), "--epochs", "30"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, timeout=300, env=env, cwd=folder)
    (folder / "expected.json").write_text(json.dumps(_one_step(folder / "site" / "model")))
    handler = partial(_Quiet, directory=str(folder / "site"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {
            "SITE": f"http://127.0.0.1:{server.server_port}/",
            "CHROMIUM": str(CHROMIUM),
            "PACKAGE": str(EXAMPLE / "package.json"),
            "EXPECTED": str(folder / "expected.json"),
            "FOLDER": str(folder / "site"),
        }
        server.shutdown()


def _one_step(model: Path) -> dict[str, Any]:
    """What onnxruntime gives in Python: each layer's shares of one image, and a step on it twice."""
    facts = json.loads((model / "facts.json").read_text("utf-8"))
    weights = load_file(model / "step.safetensors")
    image = np.linspace(0, 1, 64, dtype=np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    answers, step = (
        onnxruntime.InferenceSession(str(model / name), options)
        for name in ("answers.onnx", "step.onnx")
    )
    used = {name: weights[name] for name in facts["answers"]["inputs"][1:]}
    shares = []
    for scores, scale in zip(
        answers.run(None, {"x": image.reshape(1, 1, 8, 8), **used}), facts["scale"], strict=True
    ):
        powers = np.exp(scale * (scores[0, :10] - scores[0, :10].max()))
        shares.append((powers / powers.sum()).tolist())
    feed = {
        "x": np.stack([image, image]).reshape(2, 1, 8, 8),
        "target": np.array([12, 12]),
        "lr": np.array(facts["lr"], np.float32),
    }
    found = dict(zip(facts["step"]["outputs"], step.run(None, {**feed, **weights}), strict=True))
    moved = {name: found[f"new.{name}"].reshape(-1)[:50].tolist() for name in weights}
    return {
        "image": image.tolist(),
        "target": 12,
        "shares": shares,
        "losses": found["losses"].tolist(),
        "weights": moved,
    }


NAMES = re.findall(r'^test\("(.+?)"', (HERE / "page.test.mjs").read_text("utf-8"), re.MULTILINE)


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_page(name, site):
    command = [
        str(NODE),
        "--test",
        "--test-reporter=tap",
        f"--test-name-pattern=^{re.escape(name)}$",
        "page.test.mjs",
    ]
    done = subprocess.run(
        command, cwd=HERE, env={**os.environ, **site}, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^# pass 1$", done.stdout, re.MULTILINE), done.stdout


@needs_browser
@pytest.mark.slow
def test_every_file_of_the_page_is_kept_for_visits_without_a_network(site):
    folder = Path(site["FOLDER"])
    worker = (folder / "offline.js").read_text("utf-8")
    kept = json.loads(re.search(r"^const FILES = (.*);$", worker, re.MULTILINE).group(1))
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(kept) == there - {"offline.js"} | {"./"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--data-root", "."], "--data-root is for --data mnist"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message, tmp_path, monkeypatch, capsys):
    main = runpy.run_path(str(EXAMPLE / "build.py"))["main"]
    monkeypatch.setattr(sys, "argv", ["build.py", "--out", str(tmp_path / "site"), *options])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["thesis.txt", "offline.js"])  # other pages have such a file, too
def test_a_folder_of_other_files_is_not_replaced(name, tmp_path, monkeypatch):
    (tmp_path / name).write_text("mine")
    main = runpy.run_path(str(EXAMPLE / "build.py"))["main"]
    monkeypatch.setattr(sys, "argv", ["build.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="holds other files"):
        main()
    assert [path.name for path in tmp_path.iterdir()] == [name]
