"""The code of docs/how-to/lightning.md runs as it stands, where Lightning is installed."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "lightning.md"


def _code() -> tuple[str, str]:
    text = PAGE.read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (other,) = re.findall(r"```text\n(.*?)```", text, flags=re.DOTALL)
    return example, other


def test_the_page_holds_an_example_that_compiles() -> None:
    example, other = _code()
    compile(example, str(PAGE), "exec")
    compile("class Spela:\n" + other, str(PAGE), "exec")


@pytest.mark.skipif(find_spec("lightning") is None, reason="Lightning is not installed")
@pytest.mark.parametrize("way", ["fused", "by gradients"])
def test_the_example_learns_the_digits(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # Lightning writes its logs and checkpoints here
    example, other = _code()
    if way == "by gradients":
        example, count = re.subn(
            r"    def training_step.*?\n\n", other + "\n", example, flags=re.DOTALL
        )
        assert count == 1
    names: dict[str, object] = {}
    exec(compile(example, str(PAGE), "exec"), names)
    metrics = names["trainer"].callback_metrics  # type: ignore[attr-defined]
    assert metrics["accuracy"] > 0.95
    assert names["trainer"].global_step == 290  # type: ignore[attr-defined]
    assert list(tmp_path.rglob("*.ckpt"))
