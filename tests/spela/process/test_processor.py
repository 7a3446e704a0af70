"""Whether the processor multiplies in bf16, and what the command line says where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from spela.cli.commands import app
from spela.process import multiplies_bf16


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx512f avx512_bf16\n", True),
        ("flags : amx_bf16 amx_tile\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx2 fma\n", False),
        ("processor : 0\n", None),
        (None, None),
    ],
)
def test_instructions_as_linux_lists_them(
    text: str | None, expected: bool | None, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert multiplies_bf16(tmp_path / "cpuinfo") is expected


@pytest.mark.parametrize(("able", "said"), [(False, True), (True, False), (None, False)])
def test_training_says_where_bf16_is_slow(
    able: bool | None, said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spela.cli.running.multiplies_bf16", lambda: able)
    arguments = ["train", "--data", "digits", "--layers", "10", "--epochs", "1"]
    arguments += ["--device", "cpu", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*arguments, "--precision", "bf16"])
    assert result.exit_code == 0, result.output
    assert ("no products in bf16" in result.output) is said
