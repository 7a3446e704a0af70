"""What the pages show runs: Python as it stands, a page's blocks one after the other; of the commands those
whose data and run folders are there. Other commands have at least the options that the pages give them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import typer

from spela.cli import main
from spela.cli.commands import app
from spela_kernels import OBJECTIVES
from spela_kernels.backend import BACKENDS
from spela_kernels.cpu.gemm_choice import LIBRARIES
from spela_kernels.environment import choice_of

ROOT = Path(__file__).resolve().parents[2]
WRITTEN_BY_HAND = (
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name != "results"),
)
COMMANDS = typer.main.get_command(app)
# Their code is tested with what it needs: in tests/spela, test_lightning.py and export/test_commands.py.
ELSEWHERE = {"lightning.md", "export.md"}


def _blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of every fence, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


PAGES = [
    page for page in WRITTEN_BY_HAND if {"python", "bash"} & {kind for kind, _ in _blocks(page)}
]


@pytest.fixture(autouse=True)
def _leave_no_trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))  # as torchrun would, for one process
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "0")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    objectives = dict(OBJECTIVES)
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)
    OBJECTIVES.clear()
    OBJECTIVES.update(objectives)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_page_runs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, object] = {}
    for language, text in _blocks(page):
        if language == "python":
            code = compile(text, str(page), "exec")
            if page.name not in ELSEWHERE:
                exec(code, names)
        elif language == "bash":
            for line in text.splitlines():
                _run(shlex.split(line, comments=True), monkeypatch)


def _run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a line, or check that what it calls exists."""
    if "-m" in words and words[0] in ("python", "torchrun"):
        called = words[words.index("-m") + 1 :]
        assert find_spec(called[0]) is not None, f"no module {called[0]}"
        if called[0] == "spela":
            _check_options(called)
        return
    if words[:1] == ["spela"]:
        _check_options(words)
    inputs = [word for word in words[1:] if Path(word).exists()]
    if words[:1] == ["spela"] and ("digits" in words or inputs):
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code, words
    elif words[:1] == ["python"] and len(words) > 1:
        assert Path(words[1]).exists(), f"no file {words[1]}"
        if len(inputs) == len(words) - 1 > 1:
            subprocess.run([sys.executable, *words[1:]], check=True, timeout=120)


def _check_options(words: list[str]) -> None:
    """Whether `spela NAME --option ...` is a command that there is."""
    with typer.Context(COMMANDS) as context:
        if len(words) < 2 or words[1].startswith("-"):
            return
        command = COMMANDS.get_command(context, words[1])  # type: ignore[attr-defined]
    assert command is not None, f"no command {words[1]}"
    known = {
        name
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    asked = {word.split("=")[0] for word in words[2:] if word.startswith("--")}
    assert asked <= known, f"{' '.join(words)}: no option {', '.join(sorted(asked - known))}"


def test_the_pages_give_variables_values_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"SPELA_CPU_GEMM": LIBRARIES, "SPELA_BACKEND": BACKENDS}
    texts = [page.read_text("utf-8") for page in WRITTEN_BY_HAND]
    found = {pair for text in texts for pair in re.findall(r"\b(SPELA_\w+)=(\w+)", text)}
    assert len(found) > 1
    for name, value in found:
        monkeypatch.setenv(name, value)
        choice_of(name, known[name], "value")


def test_a_page_that_is_wrong_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in (
        "spela trian",
        "spela train --recipee best",
        "python -m bench.no_table",
        "python no.py",
    ):
        with pytest.raises(AssertionError, match="no "):
            _run(shlex.split(line), monkeypatch)
    with pytest.raises(AssertionError):
        _run(shlex.split("spela train --data digits --layers 0 --out runs/x"), monkeypatch)
