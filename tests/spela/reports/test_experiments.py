"""`spela reproduce` as a user calls it, its report, and its tables in pages."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from spela.cli import main
from spela.experiments.plan import Options, plan
from spela.experiments.registry import EXPERIMENTS
from spela.experiments.reproduce import reproduce
from spela.experiments.runner import run_jobs
from spela.experiments.tables import read_tables, write_table
from spela.reports import update_pages, write_pages
from spela.reports.cells import missing
from spela.reports.readme import SUMMARY, main_table


def _call(*arguments: str | Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["spela", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    assert _call("reproduce", "all", "--quick", "--epochs", "1", "--out", out) == 0
    return out


def test_quick_runs_every_experiment_and_says_what_it_is(quick: Path) -> None:
    assert [path.name for path in quick.iterdir()] == ["quick"]
    for name in EXPERIMENTS:
        table = json.loads((quick / "quick" / f"{name}.json").read_text())
        assert table["quick"] is True
        statuses = {row["status"] for row in table["rows"]}
        assert statuses <= {"done", "skipped"}, name
    html = (quick / "quick" / "report.html").read_text()
    assert "NOT RESULTS" in html
    assert "http" not in html  # self-contained
    assert html.count("data:image/png;base64,") >= 8
    markdown = (quick / "quick" / "report.md").read_text()
    assert "NOT RESULTS" in markdown
    for line in markdown.splitlines():
        if line.startswith("!["):
            file = quick / "quick" / line[line.rindex("(") + 1 : -1]
            assert file.read_bytes().startswith(b"\x89PNG")
    for row in ("best", "tmlr", "mono"):
        assert f"mlp-digits-{row}-diagnosed.png" in markdown


def test_quick_figures_never_reach_a_page(quick: Path, capsys: pytest.CaptureFixture) -> None:
    page = quick.parent / "accuracy.md"
    page.write_text("<!-- results:begin -->\n<!-- results:end -->\n")
    call = ("reproduce", "mlp", "--quick", "--out", quick, "--page", page)
    assert _call(*call) == 2
    assert "--quick makes no results" in capsys.readouterr().err
    with pytest.raises(ValueError, match="makes no results"):
        update_pages(page, None, Options(quick, quick=True), ["mlp"])
    with pytest.raises(ValueError, match="holds no table"):
        update_pages(page, None, Options(quick), ["mlp"])


def test_main_table_is_written_and_the_rest_is_kept(tmp_path: Path) -> None:
    options = Options(tmp_path, seeds=(0,), data=("digits",), epochs=1, rows="tmlr 1024,10")
    table = reproduce(EXPERIMENTS["mlp"], options)
    page = tmp_path / "accuracy.md"
    page.write_text("# Title\n<!-- results:begin -->\nold\n<!-- results:end -->\nafter ä\n")
    update_pages(page, None, options, ["mlp"])
    text = page.read_text()
    assert text.startswith("# Title\n<!-- results:begin -->\n| experiment |")
    assert text.endswith("<!-- results:end -->\nafter ä\n")
    assert "old" not in text
    row = next(row for row in table["rows"] if row["row"] == "tmlr 1024,10")
    assert f"{row['accuracy'][0]['mean']:.2f}" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 3  # header, rule, the one row that has figures
    before = page.read_text()
    update_pages(page, None, options, ["mlp"])
    assert page.read_text() == before


def test_a_table_that_was_not_rebuilt_reaches_no_page(tmp_path: Path) -> None:
    options = Options(tmp_path, seeds=(0,), data=("digits",), epochs=1, rows="tmlr 1024,10")
    reproduce(EXPERIMENTS["mlp"], options)
    table = tmp_path / "mlp.json"
    edited = re.sub(r'"mean": [0-9.]+', '"mean": 99.99', table.read_text())
    table.write_text(edited)
    page = tmp_path / "accuracy.md"
    line = "| mlp | tmlr 1024,10 | digits | 1 | 1 | 80.00 | | | | |"
    text = f"<!-- results:begin -->\n{line}\n<!-- results:end -->\n"
    page.write_text(text)
    # No run of 200 epochs is there, and memory has no rows: neither call makes this table anew.
    for name in ("mlp", "memory"):
        assert _call("reproduce", name, "--report-only", "--out", tmp_path, "--page", page) == 2
        assert page.read_text() == text


def test_rows_measured_elsewhere_stay(tmp_path: Path) -> None:
    options = Options(tmp_path, seeds=(0,), data=("digits",), epochs=1, rows="tmlr 1024,10")
    reproduce(EXPERIMENTS["mlp"], options)
    rest = "20 | 3 | 90.00 | | | | |"
    stays = [f"| mlp | best | mnist | {rest}", f"| mlp | tmlr 1024,10 | mnist | {rest}"]
    late = f"| early-exit | best, calibrated | mnist | {rest}"
    gone = [
        f"| mlp | a row of long ago | mnist | {rest}",
        "| mlp | tmlr 1024,10 | digits | 20 | 1 | 90.00 | | | | |",
    ]
    page = tmp_path / "accuracy.md"
    page.write_text(
        "\n".join(["<!-- results:begin -->", late, *stays, *gone, "<!-- results:end -->"])
    )
    update_pages(page, None, options, ["mlp"])
    lines = page.read_text().splitlines()[3:-1]
    assert lines[:2] == [line.replace("| 3 |", "| 3† |") for line in stays]
    assert lines[2].startswith("| mlp | tmlr 1024,10 | digits | 1 | 1 |")
    assert lines[3:] == [late]


def test_a_row_of_the_page_stays_where_it_says_more(tmp_path: Path) -> None:
    options = Options(tmp_path, seeds=(0, 1), data=("digits",), epochs=1, rows="tmlr 1024,10")
    (line,) = main_table([reproduce(EXPERIMENTS["mlp"], options)]).splitlines()[2:]
    assert line.startswith("| mlp | tmlr 1024,10 | digits | 1 | 2 |")
    assert line.endswith("|  |")  # no rival
    tables = read_tables(options, ["mlp"])
    start = "| mlp | tmlr 1024,10 | digits | 20"
    more, rival = (
        f"{start} | 3 | 90.00 | | | | |",
        f"{start} | 1 | 90.00 | | | | +1.00 (backprop) |",
    )
    for before, kept in (
        (f"{start} | 2 | 90.00 | | | | |", line),
        (more, more.replace("| 3 |", "| 3† |")),
        (rival, line.removesuffix("|  |") + "| (backprop†) |"),
        (
            f"{start} | 3 | 90.00 | | | | +1.00 (backprop) |",
            f"{start} | 3† | 90.00 | | | | +1.00 (backprop) |",
        ),
    ):
        assert main_table(tables, before).splitlines()[2:] == [kept]
        assert main_table(tables, kept).splitlines()[2:] == [kept]


def test_the_readme_shows_the_headline_rows_of_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out, page, readme = tmp_path / "out", tmp_path / "accuracy.md", tmp_path / "README.md"
    options = Options(out, seeds=(0,), data=("digits",), epochs=1, rows="base*")
    reproduce(EXPERIMENTS["ablation"], options)
    rest = "20 | 3 | 90.00 / 91.00 | 90.50 | 89.00 | +1.00 | +2.00 (backprop 88.90)"
    page.write_text(
        f"<!-- results:begin -->\n| mlp | best | mnist | {rest} |\n| mlp | tmlr 1024,10 | mnist | {rest} |\n"
        "<!-- results:end -->\n"
    )
    readme.write_text("before\n" + "\nold\n".join(SUMMARY) + "\nafter\n")
    call = (
        "reproduce",
        "ablation",
        "--data",
        "digits",
        "--seeds",
        "0",
        "--report-only",
        "--out",
        out,
    )
    files = (page.read_text(), readme.read_text())
    assert _call(*call, "--readme", readme) == 2
    assert "say where the main table is" in capsys.readouterr().err
    readme.write_text("no markers")
    assert _call(*call, "--page", page, "--readme", readme) == 2
    assert page.read_text() == files[0]
    readme.write_text(files[1])
    update_pages(page, readme, options, ["ablation"])
    assert "| ablation | base" in page.read_text()
    assert "| tmlr 1024,10 | mnist |" in page.read_text()
    before, table, after = re.split("<!--.*-->", readme.read_text())
    assert (before, after) == ("before\n", "\nafter\n")
    (line,) = table.strip().splitlines()[2:]
    settings = "mnist, 20 epochs, 3 seeds"
    assert line == f"| mlp: best | {settings} | 90.00 / 91.00 | 90.50 | 89.00 | 88.90 | +2.00 |"


def test_a_page_is_checked_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    call = ("reproduce", "mlp", "--data", "digits", "--out", tmp_path / "out", "--page")
    assert _call(*call, tmp_path / "missing.md") == 2
    assert "cannot be read as text" in capsys.readouterr().err
    page = tmp_path / "accuracy.md"
    page.write_text("<!-- results:begin -->\n<!-- results:end -->\n")
    assert _call(*call, page, "--epochs", "1") == 2
    assert "leave --page out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_report_only_makes_the_tables_of_what_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    options = Options(out, seeds=(0,), data=("digits",), rows="objective angular")
    run_jobs(plan(EXPERIMENTS["ablation"], replace(options, epochs=1)), replace(options, epochs=1))
    call = ("reproduce", "all", "--report-only", "--data", "digits", "--out", out, "--epochs", "1")
    assert _call(*call) == 0
    assert [path.name for path in out.glob("*.json")] == ["ablation.json"]
    table = json.loads((out / "ablation.json").read_text())
    assert table["epochs"] == 1
    done = [row["row"] for row in table["rows"] if row["seeds"]]
    assert done == ["objective angular"]
    assert "objective angular" in (out / "report.md").read_text()


def test_rows_that_were_not_asked_for_do_not_fail_a_call(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    call = ("reproduce", "mlp", "--data", "digits", "--seeds", "0", "--epochs", "1", "--out", out)
    options = Options(out, seeds=(0,), data=("digits",), epochs=1)
    (other,) = (j for j in plan(EXPERIMENTS["mlp"], options) if j.row.name == "pepita")
    folder = out / "runs" / other.key
    folder.mkdir(parents=True)
    (folder / "failed.json").write_text('{"error": "no memory"}')
    assert _call(*call, "--rows", "tmlr 1024,10") == 0
    assert "pepita" in capsys.readouterr().out


def test_a_pattern_of_rows_must_match_one(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert _call("reproduce", "mlp", "--rows", "bset", "--out", tmp_path / "out") == 2
    assert "matches no row of mlp: did you mean 'best'?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    # An experiment without rows, which has nothing to match, runs.
    assert _call("reproduce", "memory", "--quick", "--out", tmp_path / "out") == 0


@pytest.mark.parametrize("text", ["no markers", "<!-- results:end --><!-- results:begin -->", ""])
def test_a_page_without_markers_is_left_alone(tmp_path: Path, text: str) -> None:
    page = tmp_path / "accuracy.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="must hold"):
        update_pages(page, None, Options(tmp_path), ["mlp"])
    assert page.read_text() == text


def test_measured_parts_are_drawn(tmp_path: Path) -> None:
    options = Options(tmp_path, seeds=(0,))
    points = [
        {
            "method": method,
            "depth": depth,
            "width": 64,
            "peak_bytes": 1e6 * depth * share,
            "step_ms": 1.0,
            "multiply_adds": 3e9 * share,
        }
        for method, share in (("spela", 0.5), ("backprop", 1.0))
        for depth in (1, 2)
    ]
    (tmp_path / "bench-memory.json").write_text(json.dumps({"threads": 3, "points": points}))
    memory = reproduce(EXPERIMENTS["memory"], options)
    assert len(memory["measured"]["points"]) == 4
    exits = {
        **memory,
        "experiment": "early-exit",
        "measure": "exits",
        "measured": {
            "points": [
                {
                    "row": "best",
                    "data": data,
                    "threshold": t,
                    "accuracy": 90 - t,
                    "multiply_adds": 0.5 + t / 4,
                }
                for data in ("digits", "mnist")
                for t in (0.0, 1.0)
            ],
            "halves": [
                {
                    "row": "best",
                    "seed": 0,
                    "data": data,
                    "thresholds": [[0.25, None], [0.5, 0.125]],
                    "accuracy": accuracy,
                    "full_accuracy": 90.0,
                    "multiply_adds": work,
                    "full_ms": 20.0,
                    "ms": ms,
                }
                for data, accuracy, work, ms in (
                    ("digits", 89.9, 0.6, 15.0),
                    ("mnist", 80.0, 1.227, 25.0),
                )
            ],
        },
    }
    write_table(options, exits)
    html, markdown = write_pages(options)
    assert html.read_text().count("data:image/png;base64,") == 2
    for row in (
        [
            "0.250, never; 0.500, 0.125",
            "90.00",
            "89.90",
            "-0.10",
            "40.0 % fewer",
            "20 / 15 ms",
            "25 % less",
        ],
        [
            "0.250, never; 0.500, 0.125",
            "90.00",
            "80.00",
            "-10.00",
            "22.7 % more",
            "20 / 25 ms",
            "25 % more",
        ],
    ):
        assert " | ".join(row) in markdown.read_text()
        assert "".join(f"<td>{cell}</td>" for cell in row) in html.read_text()
    assert "saved" not in markdown.read_text() + html.read_text().split("<body>")[1]
    assert "Batch 512, 3 threads" in markdown.read_text()
    assert "| 2 x 64 | spela | 1.0 | 0.50 | 1.0 | 1.00 | 1.50 | 0.50 |" in markdown.read_text()
    shown = main_table([exits]).splitlines()[2:]
    assert shown == [
        f"| early-exit | best, calibrated | {data} | | 1 | {change} points | | | | |"
        for data, change in (
            ("digits", "40 % fewer multiply-adds, 25 % less time, -0.10"),
            ("mnist", "23 % more multiply-adds, 25 % more time, -10.00"),
        )
    ]
    alone = [point for point in points if point["method"] == "spela"]
    for held, reason in (
        ({"points": [{"method": "spela"}]}, "'depth'"),
        ({"threads": 3, "points": alone}, "backprop is missing at"),
        ({"threads": 3, "points": [{**p, "peak_bytes": 0} for p in points]}, "must be positive"),
        ({"threads": float("inf"), "points": points}, "infinity"),
    ):
        (tmp_path / "bench-memory.json").write_text(json.dumps(held))
        broken = reproduce(EXPERIMENTS["memory"], options)["measured"]["unavailable"]
        assert "does not hold the benchmark's figures" in broken
        assert reason in broken


def test_a_report_does_not_say_what_data_a_machine_has() -> None:
    skipped = {"status": "skipped", "row": "a", "data": "mnist", "reason": "mnist is not at hand"}
    waiting = {"status": "not run", "row": "b", "data": "digits", "reason": ""}
    found = missing({"rows": [skipped, waiting], "measured": {}})
    assert found == [("2 rows (a on mnist, ... b on digits)", "no run of it yet")]


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no table"):
        write_pages(Options(tmp_path))
    (tmp_path / "mlp.json").write_text("{")
    with pytest.raises(ValueError, match=r"mlp\.json is not valid JSON"):
        write_pages(Options(tmp_path))
    (tmp_path / "mlp.json").write_text("[]")
    with pytest.raises(ValueError, match="not a table of this version"):
        write_pages(Options(tmp_path))
