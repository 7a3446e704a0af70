"""The tutorials run, put out what was saved with them, and say no number that they do not show."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

RUNS = Path(__file__).with_name("notebook_runs.py")
spec = importlib.util.spec_from_file_location("notebook_runs", RUNS)
notebook_runs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(notebook_runs)

NOTEBOOKS = pytest.mark.parametrize("path", notebook_runs.NOTEBOOKS, ids=lambda path: path.stem)
_NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _text(output: Any) -> str:
    return output.get("text") or output.get("data", {}).get("text/plain", "")


def _outputs(notebook: Any) -> list[list[tuple[str, str]]]:
    """Kind and text of every cell's outputs; numbers, which differ by machine, left out."""
    return [
        [
            (",".join(sorted(output.get("data", {}))), re.sub(rf"{_NUMBER}|\s+", " ", _text(output)).split())
            for output in cell.outputs
        ]
        for cell in _code(notebook)
    ]  # fmt: skip


@pytest.mark.slow  # a minute: each starts a process that imports torch
@NOTEBOOKS
def test_a_notebook_runs_and_puts_out_what_is_saved(path: Path, tmp_path: Path) -> None:
    found = notebook_runs.executed(path, tmp_path)
    assert _outputs(found) == _outputs(nbformat.read(path, as_version=4))


@NOTEBOOKS
def test_the_code_compiles_and_what_it_imports_is_there(path: Path) -> None:
    for cell in _code(nbformat.read(path, as_version=4)):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)


@NOTEBOOKS
def test_what_is_saved_is_of_one_run_and_of_no_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    cells = _code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    pictures = 0
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type in ("stream", "display_data"), output
            assert output.get("name") != "stderr", output
            assert not re.search(r"(/|\\)(home|work|tmp|root|Users)\b", _text(output))
            pictures += "image/png" in output.get("data", {})
    assert pictures > 0
    assert path.stat().st_size < 300_000
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


@NOTEBOOKS
def test_prose_has_only_numbers_that_code_or_outputs_show(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    shown = set()
    for cell in _code(notebook):
        for text in (cell.source, *map(_text, cell.outputs)):
            shown |= set(re.findall(r"\d+(?:\.\d+)?", text))
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    said = re.findall(r"(?<![\w.])\d+(?:\.\d+)?", re.sub(r"\]\([^)]*\)|`[^`]*`", "", prose))
    assert set(said) <= shown
