"""What `spela reproduce` refuses before its runs, which may take days, and what it ends with."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--publish", "file"], "file is a file: give --publish a folder"),
        (["--publish", "r"], "r holds the results themselves: publish to another folder"),
        (["--quick", "--publish", "p"], "--quick makes no results: leave --publish out"),
    ],
)
def test_where_results_cannot_be_published_is_said_first(
    options: list[str], message: str, call: Call
) -> None:
    code, shown, error = call("reproduce", "mlp", "--out", "r", *options)
    assert (code, shown, error) == (2, "", f"spela: error: {message}\n")
    assert os.listdir() == ["file"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", ","], "--data must be names or files such as mnist,cifar10, got ','"),
        (
            ["--data", "digits,"],
            "--data must be names or files such as mnist,cifar10, got 'digits,'",
        ),
        (
            ["--report-only", "--jobs", "2"],
            "--jobs is not for --report-only, which trains nothing: leave it out",
        ),
        (
            ["--report-only", "--download"],
            "--download is not for --report-only, which trains nothing: leave it out",
        ),
    ],
)
def test_what_would_not_count_is_refused(options: list[str], message: str, call: Call) -> None:
    before = os.listdir()
    code, shown, error = call("reproduce", "mlp", "--out", "r", *options)
    assert (code, shown, error) == (2, "", f"spela: error: {message}\n")
    assert os.listdir() == before


def test_a_call_without_a_figure_is_no_success(call: Call) -> None:
    arguments = ("reproduce", "mlp", "--data", "cifar10", "--data-root", "nowhere", "--seeds", "0")
    code, shown, error = call(*arguments, "--out", "r")
    assert code == 2
    assert "cifar10 is not at hand" in shown
    assert "no row has a figure (reasons above)" in error
    assert Path("r/report.md").exists()


def test_the_end_names_the_folder_of_the_runs_not_where_they_are_published(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spela.experiments.publish.publish", lambda *_: [])
    monkeypatch.setattr("spela.reports.write_pages", lambda *_: ("html", "markdown"))
    arguments = ("reproduce", "mlp", "--data", "cifar10", "--data-root", "nowhere", "--seeds", "0")
    code, _, error = call(*arguments, "--out", "r", "--publish", "p")
    assert code == 2
    assert "no row has a figure (reasons above): r has its table and report" in error


def test_a_report_of_no_run_is_no_success_and_blanks_in_data_are_none(call: Call) -> None:
    arguments = ("reproduce", "mlp", "--data", "digits, mnist", "--report-only", "--out", "r")
    code, shown, error = call(*arguments, "--seeds", "7")
    assert (code, shown) == (2, "")
    assert error == (
        "spela: error: no run that this call asks for is finished in r: nothing was written\n"
    )
