"""Part `selftest`: the self-test that every user of a GPU may run."""

from __future__ import annotations

from bench.gpu.rows import Rows
from bench.gpu.setting import Setting
from spela_kernels import selftest

__all__ = ["measure"]


def measure(rows: Rows, setting: Setting) -> None:
    """Its report beside the logs; here the verdict, the failures and the figures."""
    file = setting.folder / "selftest.md"
    file.unlink(missing_ok=True)
    code = selftest.main(["--out", str(file), *setting.pick([], ["--quick"])])
    if not file.is_file():
        raise SystemExit(code or 1)
    lines = file.read_text(encoding="utf-8").splitlines()
    rows.note(f"{lines[-1]}.")
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 3 and cells[1] in ("FAIL", "-"):
            rows.add("self-test", check=cells[0], result=cells[1], figures=cells[2])
    if code != 0:
        raise SystemExit(code)
