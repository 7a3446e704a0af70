"""The sentences at a run's end that say what to try."""

from __future__ import annotations

from pathlib import Path

import pytest

from spela.cli import main


def test_a_run_that_learnt_nothing_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("train", "--data", "digits", "--layers", "16", "--epochs", "3")
    for rate, learnt in (("1e30", False), ("1e-2", True)):
        out = tmp_path / rate
        monkeypatch.setattr("sys.argv", ["spela", *run, "--lr", rate, "--out", str(out)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, None)
        said = "no layer is better than naming one class for all, 10.3 %: try another --lr"
        assert (said in capsys.readouterr().out) is not learnt
