"""`import spela`: every public name is there, and none costs anything before it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import spela


def _python(code: str) -> str:
    """What a new interpreter prints."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_the_package_imports_nothing_heavy() -> None:
    heavy = "print([m for m in ('torch', 'numpy', 'scipy', 'sklearn') if m in sys.modules])"
    assert _python(f"import sys, spela; {heavy}") == "[]"
    # PyTorch users need not wait for scikit-learn.
    assert _python(f"import sys, spela; spela.SpelaLinear; {heavy}") == "['torch', 'numpy']"


def test_each_name_is_that_of_the_module_it_comes_from() -> None:
    """The imports that type checkers see are what users get."""
    tree = ast.parse(Path(spela.__file__).read_text(encoding="utf-8"))
    seen = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(seen) == sorted(spela.__all__)
    for name, module in seen.items():
        there = import_module(f"{module}.{name}") if module == "spela" else None
        assert getattr(spela, name) is (there or getattr(import_module(str(module)), name))


def test_a_star_brings_every_name_and_dir_shows_them() -> None:
    brought = _python("from spela import *; print(sorted(n for n in dir() if n[0] != '_'))")
    assert brought == str(sorted(spela.__all__))
    assert _python("import spela; print(set(spela.__all__) <= set(dir(spela)))") == "True"


def test_a_name_does_not_depend_on_what_was_imported_before() -> None:
    """A module of a function's name would take its place once anything imported it."""
    for name in spela.__all__:
        assert name == "optim" or find_spec(f"spela.{name}") is None
    before = "import spela.conversion.network, spela.layers.linear, spela"
    assert _python(f"{before}; print(spela.convert.__name__)") == "convert"
    assert _python("import spela; print(spela.layers.SpelaLinear.__name__)") == "SpelaLinear"


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'spela' has no attribute 'SpelaLinaer'"):
        spela.SpelaLinaer  # type: ignore[attr-defined]  # noqa: B018
