"""The built wheel, installed where there is no compiler and none of this tree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import spela

ROOT = Path(__file__).resolve().parents[2]
# The variables of a user who has no compiler and no copy of this tree on the path.
BARE = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"CC": "false", "CXX": "false"}


def _run(*command: str | Path, cwd: Path, **variables: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**BARE, **variables},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_names_and_the_version_have_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["name"] == "torch-spela"
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "spela.__version__"}
    # Hints on what to install name the distribution: `spela` alone is another project's on the index.
    for path in [*ROOT.glob("spela*/**/*.py"), *ROOT.glob("docs/**/*.md"), ROOT / "README.md"]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"pip install ['\"]?spela\b", text), path


def test_the_forge_tests_the_pythons_that_are_promised() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    promised = re.findall(r"Python :: (3\.\d+)", text)
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    (matrix,) = re.findall(r"python: \[(.*)\]", workflow)
    assert re.findall(r"3\.\d+", matrix) == promised
    assert re.findall(r"cp(3)(\d+)-", text) == [tuple(p.split(".")) for p in promised]


@pytest.mark.slow
def test_a_wheel_built_without_a_compiler_trains_on_digits(tmp_path: Path) -> None:
    source = tmp_path / "source"
    _run("git", "clone", "--quiet", ROOT, source, cwd=tmp_path)
    _run(sys.executable, "-m", "build", "--outdir", tmp_path / "dist", source, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("torch_spela-*.whl")
    (sdist,) = (tmp_path / "dist").glob("torch_spela-*.tar.gz")
    assert wheel.name.split("-")[1] == spela.__version__
    built = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in built if name.endswith((".so", ".pyd"))]
    assert "spela/py.typed" in built
    assert any(name.startswith("spela/reports/templates/") for name in built)
    with tarfile.open(sdist) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    kept = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("spela_kernels/*/*.[ch]")}
    assert kept <= names

    place = tmp_path / "env"
    venv.create(place, with_pip=True)
    python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    _run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    # The dependencies are this environment's: a path line runs no .pth file of theirs, so not this tree's.
    site = _run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path
    )
    (Path(site.strip()) / "here.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = _run(python, "-c", "import spela; print(spela.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(place)
    program = python.parent / "spela"
    assert _run(program, "--version", cwd=tmp_path) == f"spela {spela.__version__}\n"
    assert "not all in use" in _run(program, "info", cwd=tmp_path)
    train = ["train", "--data", "digits", "--layers", "256,256", "--epochs", "20", "--out", "run"]
    shown = _run(program, *train, cwd=tmp_path, OMP_NUM_THREADS="1")
    found = re.search(r"layer 2: ([\d.]+) %", shown)
    assert found is not None
    assert float(found[1]) > 95
    assert (tmp_path / "run" / "report.html").exists()
