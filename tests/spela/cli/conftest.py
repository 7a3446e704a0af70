"""Commands called in this process, in a folder of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spela.cli import main
from spela_kernels import backend, environment
from spela_kernels.cpu import gemm, gemm_choice

_LOOKED_UP = (
    backend.named_backend,
    gemm_choice.pinned_library,
    gemm.libraries_here,
    environment._warn_of_unknown,
)


def forget_environment() -> None:
    """As in a new process, variables SPELA_* are looked up again."""
    for looked_up in _LOOKED_UP:
        looked_up.cache_clear()


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Runs a command under some variables, beside an empty `file`: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for name in environment.VARIABLES:
        if name != "SPELA_CACHE_DIR":  # the tests' own
            monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, **variables: str) -> tuple[int, str, str]:
        with pytest.MonkeyPatch.context() as patch:
            forget_environment()
            patch.setattr(sys, "argv", ["spela", *arguments])
            for name, value in variables.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as stop:
                main()
        said = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, said.out, said.err

    yield run
    forget_environment()
