"""The campaign on a GPU, tried without one: all parts in a dry run, limits, what other tools say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from bench.gpu import counters, kernels, marked_tests, networks, sanitizers, stand_in
from bench.gpu.__main__ import main
from bench.gpu.meters import Times, find_card, times_of
from bench.gpu.parts import PARTS, Part, chosen_waves
from bench.gpu.processes import Command, Outcome, run_together
from bench.gpu.report import Finding, to_markdown
from bench.gpu.rows import Rows, has_failed, read_rows
from bench.gpu.setting import Setting
from spela.benchmarks.network import NETWORK_CASES
from spela_kernels.cost.roofline import GPUS
from spela_kernels.proof.parity import OPS
from spela_kernels.selftest import SUITES

pytest.importorskip("triton")
DRY = Setting(True, Path("unused"))


def test_a_dry_run_runs_every_part(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path / "r"), "--dry-run"]) == 0
    data = json.loads((tmp_path / "r" / "report.json").read_text())
    assert data["dry_run"] is True
    assert [part["name"] for part in data["parts"]] == list(PARTS)
    tables = {}
    for part in data["parts"]:
        assert part["ended"] == "ok", part
        assert not [row for row in part["rows"] if has_failed(row)]
        tables[part["name"]] = Counter(row.get("table") for row in part["rows"])
    assert tables["networks"]["networks"] == 13
    assert tables["networks"]["goals"] == 3
    assert tables["layers"]["layers"] == 9  # TF32's products are of float32 alone
    assert tables["layers"]["projections"] == 4
    assert tables["training"]["training"] == tables["training-cpu"]["training"] == 7
    assert tables["memory"] == {
        "against depth, batch 512": 6, "in blocks": 4, "a convolution layer's step, Adam": 4,
    }  # fmt: skip
    assert tables["tests"]["tests"] == tables["sanitizers"]["sanitizers"] == 1
    rows = {part["name"]: part["rows"] for part in data["parts"]}
    (tests,) = (row for row in rows["tests"] if row["table"] == "tests")
    assert tests["passed"] + tests["skipped"] > 0
    assert [row["result"] for row in rows["selftest"]] == 3 * ["1 of 1 passed"]
    launches = [
        row["launches"] for row in rows["layers"] if row.get("who") == "ours" and "layer" in row
    ]
    assert launches[0] == 3  # of float32: Triton's kernels, in the interpreter
    assert all("minus_cpu" in row for row in rows["training"] if row.get("table") == "training")
    text = (tmp_path / "r" / "report.md").read_text()
    assert "A dry run" in text
    assert all(f"## {name}" in text for name in PARTS)


def test_the_limits_of_all_waves_are_less_than_ten_minutes() -> None:
    waves = chosen_waves(None)
    assert sum(max(part.limit for part in wave) for wave in waves) < 600
    assert [part.name for wave in waves for part in wave] == list(PARTS)
    # What times something has the machine to itself.
    alone = [wave[0].name for wave in waves if len(wave) == 1]
    assert {"selftest", "networks", "layers", "training", "memory", "counters"} <= set(alone)


def test_without_a_gpu_it_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "file").write_text("")
    for arguments, message in {
        ("--out", "r"): "try it with --dry-run",
        ("--out", "r", "--dry-run", "--part", "speed"): "unknown part 'speed': use card",
        ("--out", str(tmp_path / "file"), "--dry-run"): "is a file: name a folder",
        ("--out", "r", "--dry-run", "--data-root", "none"): "there is no such folder",
    }.items():
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    assert not Path("r").exists()


def test_a_part_that_hangs_is_killed_with_its_children_and_keeps_its_rows(tmp_path: Path) -> None:
    rows, child = tmp_path / "rows", tmp_path / "child"
    code = (
        "import subprocess, sys, time; from pathlib import Path; from bench.gpu.rows import Rows\n"
        f"Rows(Path({str(rows)!r})).add('t', us=1.5)\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"Path({str(child)!r}).write_text(str(p.pid)); time.sleep(600)"
    )

    def command(code: str, name: str) -> Command:
        arguments = [sys.executable, "-c", code]
        return Command(arguments, 8.0, tmp_path / name, os.environ, Path.cwd())

    started = time.monotonic()
    done = run_together({"hangs": command(code, "a"), "fails": command("1 / 0", "b")})
    assert 8 <= time.monotonic() - started < 30
    assert done["hangs"].status == "killed after its limit of 8 s"
    assert read_rows(rows) == [{"table": "t", "us": 1.5}]
    assert done["fails"].status == "exit 1"
    assert done["fails"].seconds < 8
    assert "ZeroDivisionError" in done["fails"].tail
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and Path(f"/proc/{child.read_text()}").exists():
        if "Z" in Path(f"/proc/{child.read_text()}/stat").read_text().split()[2]:
            break  # ended; nobody has asked for its exit code yet
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{child.read_text()}").exists()


def test_what_a_part_runs_in_sessions_of_its_own_ends_with_it(tmp_path: Path) -> None:
    child = tmp_path / "child"
    tool = f"import os, time; open({str(child)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    code = (
        "import os, sys; from pathlib import Path; from bench.gpu.processes import *\n"
        f"end_on_request(); log = Path({str(tmp_path / 'log')!r})\n"
        f"tool = Command([sys.executable, '-c', {tool!r}], 600, log, os.environ, Path.cwd())\n"
        "run_together({'tool': tool})"
    )
    part = Command([sys.executable, "-c", code], 8.0, tmp_path / "a", os.environ, Path.cwd())
    assert "limit" in run_together({"part": part}, 10.0)["part"].status
    assert not Path(f"/proc/{child.read_text()}").exists()


def test_a_report_of_parts_that_failed() -> None:
    part = Part("layers", "x:y", 9, 0, "Layers.")
    rows: list[dict[str, Any]] = [
        {"table": "layers", "who": "ours", "us": 3.0},
        {"table": "layers", "who": "a|b", "note": "failed: RuntimeError: no\nroom"},
        {"note": "A sentence."},
    ]
    text = to_markdown([Finding(part, Outcome("exit 1", 2.0, "a\n```\nlast\n"), rows)], False)
    assert "| layers | exit 1 | 2 | 3 | 1 |" in text
    assert "```\na\n'''\nlast\n```" in text
    assert "| who | us | note |" in text
    assert "| ours | 3 |  |" in text
    assert "| a/b |  | failed: RuntimeError: no room |" in text
    assert text.count("A sentence.") == 1


def test_a_half_written_row_is_left_out(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows")
    rows.failed("t", ValueError("first\nsecond"), who="ours")
    with rows.path.open("a") as file:
        file.write('{"table": "t", "who"')
    assert read_rows(rows.path) == [
        {"table": "t", "who": "ours", "note": "failed: ValueError: first"}
    ]
    assert read_rows(tmp_path / "none") == []


def test_what_stands_in_for_torch_has_its_names() -> None:
    for name, value in stand_in._FUNCTIONS.items():
        real = getattr(torch.cuda, name)
        if isinstance(value, type):
            own = [attribute for attribute in vars(value) if not attribute.startswith("_")]
            assert own
            assert all(hasattr(real, attribute) for attribute in own), name


def test_times_of_a_step_that_cannot_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(graph: object, **settings: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    calls = []
    with stand_in.cuda_on_the_cpu():
        captured = times_of(lambda: calls.append(1), torch.ones(4), DRY)
        assert find_card() is GPUS["H100"]
        before = len(calls)
        monkeypatch.setattr(torch.cuda, "graph", refuse)
        eager = times_of(lambda: calls.append(1), torch.ones(4), DRY)
        monkeypatch.setattr(torch.cuda, "graph", Mock(side_effect=AssertionError))
        silent = times_of(lambda: None, torch.ones(4), DRY)
    assert silent.note == "no graph: AssertionError: "
    assert captured.note == ""
    assert captured.replayed is not None
    assert eager.replayed is None
    assert eager.best == eager.eager
    assert eager.note == "no graph: RuntimeError: operation not permitted when stream is capturing"
    # Cold, it is called as it is: once more than the captured one was, which is not inside its graph.
    assert len(calls) - before == before


@pytest.mark.parametrize(
    ("name", "found"),
    [("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA A100-SXM4-80GB", "A100"), ("Tesla T4", "T4"),
     ("NVIDIA H200", "H200"), ("NVIDIA GeForce RTX 4090", None), ("NVIDIA H100 PCIe", None),
     ("NVIDIA H100 NVL", None), ("NVIDIA A100-PCIE-40GB", None),
     ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None)],
)  # fmt: skip
def test_the_card_is_found_by_its_name(
    name: str, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    assert find_card() is (None if found is None else GPUS[found])


def _csv(*launches: tuple[str, dict[str, str]]) -> list[str]:
    lines = [
        "case linear done",
        "==PROF== Connected to process 7",
        '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"',
    ]
    for number, (kernel, metrics) in enumerate(launches):
        lines += [f'"{number}","{kernel}(int)","{m}","byte","{v}"' for m, v in metrics.items()]
    return [*lines, "==PROF== Disconnected"]


def test_counters_are_read_and_set_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stand_in.cuda_on_the_cpu():
        expected = counters.expected_launches(GPUS["H100"].arch)
    assert {name for name, _ in expected} == set(kernels.TABLE)
    assert {launch.name for _, launch in expected} == {
        "forward", "finalise", "update", "classes", "gradient",
    }  # fmt: skip
    launches = [
        (
            f"{launch.name}_kernel",
            {"dram__bytes_read.sum": "1,000,000", "dram__bytes_write.sum": "500000"},
        )
        for _, launch in expected
    ]
    lines = _csv(*launches)
    assert counters.read_counters(lines)[1] == {
        "kernel": "finalise_kernel", "read_bytes": 1e6, "written_bytes": 5e5,
    }  # fmt: skip
    assert counters.read_counters(["==ERROR== no permission"]) == []

    def counted(lines: list[str]) -> list[dict[str, Any]]:
        rows = Rows(tmp_path / str(len(list(tmp_path.iterdir()))))
        monkeypatch.setattr(counters, "_counted", lambda *_: counters.read_counters(lines))
        with stand_in.cuda_on_the_cpu():
            counters.measure(rows, DRY)
        return read_rows(rows.path)

    first = counted(lines)[0]
    assert first["counted_mb"] == 1.5
    assert first["of_model"] == pytest.approx(1.5 / first["modelled_mb"])
    assert "counted_mb" not in counted(_csv(launches[0]))[1]  # ncu was stopped after the first
    with pytest.raises(SystemExit, match="launch 0 is update_kernel"):
        counted(_csv(*reversed(launches)))
    # The launches before the odd one keep their counters, and those behind it the model's bytes.
    rows = Rows(tmp_path / "odd")
    odd = _csv(*launches[:2], launches[0], *launches[2:])
    monkeypatch.setattr(counters, "_counted", lambda *_: counters.read_counters(odd))
    with stand_in.cuda_on_the_cpu(), pytest.raises(SystemExit, match="launch 2 is forward_kernel"):
        counters.measure(rows, DRY)
    found = [row for row in read_rows(rows.path) if row.get("table") == "counters"]
    assert ["counted_mb" in row for row in found] == [True] * 2 + [False] * (len(launches) - 2)
    assert all(row["modelled_mb"] > 0 for row in found)


def test_sanitizers_errors_are_counted() -> None:
    clean = "case a done\ncase b done\n========= ERROR SUMMARY: 0 errors\n"
    assert sanitizers.findings(clean) == (2, [], "ERROR SUMMARY: 0 errors")
    race = "========= Error: Race reported between Write access at x and Read access at y\n"
    text = f"case a done\n{race}========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n"
    count, errors, summary = sanitizers.findings(text)
    assert (count, len(errors)) == (1, 1)
    assert summary.startswith("RACECHECK SUMMARY: 1 hazard")
    assert sanitizers.findings("case a done\n") == (1, [], "")
    assert set(OPS) == set(SUITES)


def test_files_with_marked_tests_are_found() -> None:
    files = marked_tests.marked_files()
    assert "tests/spela_kernels/linear/test_gpu.py" in files
    assert "tests/spela/data/test_batches.py" in files
    assert "tests/spela/vectors/test_sphere.py" not in files
    root = Path(marked_tests.__file__).resolve().parents[2]
    for file in (root / "tests").rglob("test_*.py"):
        text = file.read_text(encoding="utf-8")
        if "pytest.mark.gpu" in text or "DEVICES)" in text:
            assert str(file.relative_to(root)) in files


_SOME_TESTS = """
import time
import pytest
pytestmark = pytest.mark.gpu
def test_good(): pass
def test_bad(): assert 1 == 2
@pytest.mark.skip
def test_skipped(): pass
@pytest.fixture
def broken(): raise RuntimeError("no\\nroom")
def test_broken(broken): pass
def test_long(): time.sleep(SECONDS)
"""
_OF_TESTS = """
import sys; from pathlib import Path
from bench.gpu import marked_tests; from bench.gpu.processes import end_on_request
from bench.gpu.rows import Rows; from bench.gpu.setting import Setting
end_on_request(); here = Path(sys.argv[1]); marked_tests._ROOT, marked_tests._OTHERS = here, 10**6
marked_tests.marked_files = lambda: ["test_some.py", "test_none.py"]
marked_tests.measure(Rows(here / "rows"), Setting(False, here))
"""


@pytest.mark.parametrize("seconds", [0, 600], ids=["whole", "killed"])
def test_outcomes_of_tests_outlive_a_part_that_is_killed(seconds: int, tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(_SOME_TESTS.replace("SECONDS", str(seconds)))
    (tmp_path / "test_none.py").write_text("import nothing_of_this_name")
    with subprocess.Popen(
        [sys.executable, "-c", _OF_TESTS, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.getcwd(), "PYTEST_XDIST_WORKER": "gw0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as part:
        late = time.monotonic() + 300
        while seconds and sum(marked_tests.outcomes(tmp_path / "outcomes.jsonl")[0].values()) < 5:
            assert time.monotonic() < late
            time.sleep(0.1)
        if seconds:
            part.terminate()  # as at the part's limit
        assert part.wait(300) != 0
    counts, *failures = read_rows(tmp_path / "rows")
    assert counts == {
        "table": "tests", "passed": 1 if seconds else 2, "failure": 1, "error": 2, "skipped": 1,
    }  # fmt: skip
    found = {row["test"].rpartition(":")[2]: row["message"] for row in failures}
    assert found.keys() == {"test_none.py", "test_bad", "test_broken"}
    assert found["test_bad"] == "assert 1 == 2"
    assert found["test_broken"] == "RuntimeError: no"


def test_goals_of_a_network() -> None:
    case = NETWORK_CASES[1]
    # 784-1024-1024-1024, batch 50: x, y twice, weights and biases twice, ten class vectors, labels, loss.
    layers = ((784, 1024), (1024, 1024), (1024, 1024))
    moved = sum(
        4 * (50 * i + 2 * 50 * o + 2 * o * (i + 1) + 10 * o) + 50 * 8 + 4 for i, o in layers
    )
    assert networks.compulsory_bytes(case) == moved
    roofline = moved / 3350 / 1e3
    found = {
        "spela": Times(40.0, 10.0, 1.2 * roofline, 0, ""),
        "backprop_compiled": Times(90.0, 31.0, 50.0, 0, ""),
        "backprop": Times(100.0, 39.0, 50.0, 0, ""),
    }
    rows = networks.promises(case, found, 3350)
    assert [(round(row["figure"], 3), row["met"]) for row in rows] == [
        (3.1, True), (1.2, True), (round(40 / 39, 3), False),
    ]  # fmt: skip
    assert networks.promises(case, {"backprop": found["backprop"]}, 3350) == []
    assert len(networks.promises(case, found, None)) == 2


def test_what_is_worth_most_needs_torch_triton_and_scipy_alone() -> None:
    """A machine with a GPU has what its owner installed; there may be no way to install more."""
    missing = ["PIL", "filelock", "jinja2", "matplotlib", "safetensors", "sklearn", "torchvision"]
    missing += ["tqdm", "typer"]
    parts = ("card", "tests", "sanitizers", "selftest", "networks", "layers", "memory", "counters")
    modules = ", ".join(PARTS[part].call.split(":")[0] for part in parts)
    code = f"import sys; sys.modules |= dict.fromkeys({missing}); import {modules}"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
