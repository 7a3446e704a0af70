"""Help, versions and completion: at once, whole, in sentences, and with names that are there."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.main import get_command

import spela
from spela import choices
from spela.benchmarks import GROUPS
from spela.benchmarks.modelled import DTYPES
from spela.bodies import NETWORKS
from spela.cli.commands import app
from spela.cli.examples import EXAMPLES, START
from spela.data import dataset_names
from spela.experiments import RECIPES
from spela.experiments.registry import EXPERIMENTS
from spela.features import backbone_names
from spela.vectors import VECTOR_KINDS
from spela_kernels import ACTIVATIONS, OBJECTIVES
from spela_kernels.cost.roofline import GPUS, LAUNCH_US

Call = Callable[..., tuple[int, str, str]]
HELP = [[], ["--help"], ["-h"], ["--version"], *([name, "--help"] for name in EXAMPLES)]
HEAVY = (
    *("torch", "torchvision", "triton", "numpy", "scipy", "sklearn", "matplotlib", "PIL"),
    *("safetensors", "jinja2", "tqdm", "onnx", "onnxscript", "onnxruntime", "tensorboard"),
    *("pandas", "timm", "executorch", "spela_kernels"),
)
# Prints what a call imported of HEAVY below what it printed itself.
LOOK = f"""
import sys
from spela.cli import main
sys.argv[0] = "spela"
try:
    main()
finally:
    print("imported", *(m for m in {HEAVY!r} if m in sys.modules), file=sys.stderr)
"""
PARAMETERS = [
    (name, parameter)
    for name, command in get_command(app).commands.items()  # type: ignore[attr-defined]
    for parameter in command.params
]


@pytest.mark.parametrize("arguments", HELP, ids=" ".join)
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LOOK, *arguments], capture_output=True, text=True, timeout=300
    )
    assert (run.returncode, run.stderr) == (0, "imported\n")
    assert ("spela 0." if "--version" in arguments else "Usage: spela") in run.stdout


def test_the_look_sees_what_is_imported(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LOOK, "info"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert "torch" in run.stderr.splitlines()[-1].split()


@pytest.mark.parametrize("flag", ["--version", "-h"])
def test_in_this_process_too(flag: str, call: Call) -> None:
    code, shown, error = call(flag)
    assert (code, error) == (0, "")
    assert shown == f"spela {spela.__version__}\n" if flag == "--version" else "Usage: " in shown


@pytest.mark.parametrize("width", ["80", "120"])
@pytest.mark.parametrize("command", EXAMPLES)
def test_help_fits_and_names_every_option(
    command: str, width: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    _, shown, _ = call(command, "--help")
    assert max(map(len, shown.splitlines())) <= int(width)
    assert "…" not in shown
    for name, parameter in PARAMETERS:
        if name == command:
            flags = [*parameter.opts, *parameter.secondary_opts]
            assert all((f if f[0] == "-" else parameter.metavar) in shown for f in flags), flags
    for example in EXAMPLES[command]:
        assert f" {example} " in shown
    # Many options are shown under several headings.
    assert shown.count("╭─ ") >= (7 if command == "train" else 2)


@pytest.mark.parametrize(
    "parameter", [pytest.param(p, id=f"{name} {p.name}") for name, p in PARAMETERS]
)
def test_each_sentence_stands_alone(parameter: typing.Any) -> None:
    text = parameter.help
    assert text[0].isupper()
    assert text.endswith((".", "..."))
    assert text.split()[0] not in ("Of", "On", "For", "To", "With", "From")
    assert len(text.split()) >= 3


@pytest.mark.parametrize(
    "example", [*START, *(line for lines in EXAMPLES.values() for line in lines)]
)
def test_examples_are_calls_that_there_are(example: str) -> None:
    """Parsed, not run."""
    words = shlex.split(example.split(" > ")[0])
    assert words.pop(0) == "spela"
    name = words.pop(0)
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    given = command.make_context(name, words).params
    for option, known in (
        ("data", (*choices.DATASETS, "my.npz", "pets.safetensors")),
        ("recipe", choices.RECIPES.get(given.get("model", ""), ())),
        ("objective", choices.OBJECTIVES),
        ("format", choices.FORMATS),
        ("what", choices.EXPORTS),
        ("gpu", choices.GPUS),
        ("dtype", choices.DTYPES),
        ("name", (*choices.EXPERIMENTS, "all")),
    ):
        assert given.get(option) in (None, *known)
    assert set(given.get("groups") or ()) <= set(choices.BENCHMARKS) or name != "bench"


def test_names_are_those_of_the_tables() -> None:
    assert tuple(OBJECTIVES) == choices.OBJECTIVES
    assert tuple(ACTIVATIONS) == choices.ACTIVATIONS
    assert tuple(VECTOR_KINDS) == choices.VECTORS
    assert tuple(NETWORKS) == choices.NETWORKS
    assert {model: tuple(names) for model, names in RECIPES.items()} == choices.RECIPES
    assert dataset_names() == choices.DATASETS
    assert backbone_names() == choices.BACKBONES
    assert tuple(EXPERIMENTS) == choices.EXPERIMENTS
    assert tuple(GROUPS) == choices.BENCHMARKS
    assert tuple(GPUS) == choices.GPUS
    assert tuple(DTYPES) == choices.DTYPES
    (launch,) = (p for name, p in PARAMETERS if (name, p.name) == ("bench", "launch_us"))
    assert f"(default: {LAUNCH_US:g})" in launch.help


def _completed(line: str, *, shell: str = "bash", **variables: str) -> list[str]:
    words = line.split(" ")
    asked = {"COMP_WORDS": line.replace(" ", "\n"), "COMP_CWORD": str(len(words) - 1)}
    run = subprocess.run(
        [sys.executable, "-c", LOOK],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "_SPELA_COMPLETE": f"complete_{shell}", **asked, **variables},
    )
    assert run.stderr == "imported\n"
    return run.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("spela tr", ["train"]),
        ("spela e", ["evaluate", "export"]),
        ("spela train --data c", ["cifar10", "cifar100"]),
        ("spela train --objective ", list(choices.OBJECTIVES)),
        ("spela train --recipe transfer-b", ["transfer-backprop", "transfer-best"]),
        ("spela train --sch", ["--schedule"]),
        ("spela evaluate run --split ", ["test", "train"]),
        ("spela export run --what t", ["train-step"]),
        ("spela reproduce a", ["ablation", "all"]),
        ("spela bench m", ["memory"]),
        ("spela predict ru", []),  # the shell then completes files
    ],
)
def test_a_shell_completes_commands_options_and_names(line: str, expected: list[str]) -> None:
    assert _completed(line) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(shell: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LOOK],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "_SPELA_COMPLETE": f"source_{shell}"},
    )
    assert run.stderr == "imported\n"
    assert f"_SPELA_COMPLETE=complete_{shell}" in run.stdout
