"""A run says what made it: two runs of the same settings that differ can then be told apart."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import spela
from spela.data import load_dataset
from spela.experiments import load_run, make_config, run
from spela.experiments.archive import find_run, write_archive
from spela.process import machine
from spela.process.machine import describe_machine
from spela.reports.card import as_text, describe
from spela.reports.run import write_report
from spela.training import RunFolder, load_checkpoint

DATA = load_dataset("digits").subset(train=60, test=20)


def _run(out: Path, epochs: int = 1, resume: bool = False) -> dict:
    return run(
        make_config("digits", layers=(8,), epochs=epochs), DATA, out, resume=resume, extend=resume
    )


def _rewritten(path: Path, **facts: object) -> None:
    """The checkpoint with other facts; None: without them."""
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    held = {**json.loads(metadata["run"]), **facts}
    metadata["run"] = json.dumps({name: fact for name, fact in held.items() if fact is not None})
    save_file(load_file(path), path, metadata)


def test_a_run_says_what_made_it_in_all_its_files(tmp_path: Path) -> None:
    (made_by,) = _run(tmp_path / "run")["made_by"]
    assert made_by == {**describe_machine(), "device": "cpu"}
    assert made_by["spela"] == spela.__version__
    assert made_by["python"] == platform.python_version()
    assert made_by["torch"] == torch.__version__
    assert made_by["threads"] == torch.get_num_threads()
    assert len(made_by["source"]) == 12
    folder = RunFolder(tmp_path / "run")
    assert folder.read_json(folder.summary)["made_by"] == [made_by]
    assert load_checkpoint(folder.checkpoint).made_by == (made_by,)
    write_archive(tmp_path / "results" / "one.jsonl", [folder])
    published = find_run(tmp_path / "results", "run")
    assert published.read_json(published.summary)["made_by"] == [made_by]
    said = f"spela {spela.__version__}, source {made_by['source']}, torch {torch.__version__}"
    assert f"made by: {said}, " in as_text(describe(folder.path))
    page = write_report(folder, load_run(folder.path), DATA).read_text(encoding="utf-8")
    assert f"Made by {said}, " in page


def test_a_run_that_other_sources_went_on_with_says_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = _run(tmp_path)["made_by"]
    assert _run(tmp_path, 2, resume=True)["made_by"] == [first]
    monkeypatch.setattr(machine, "_own_digest", lambda: "0123456789ab")
    assert _run(tmp_path, 2, resume=True)["made_by"] == [first]  # nothing was left to train
    second = {**first, "source": "0123456789ab"}
    assert _run(tmp_path, 3, resume=True)["made_by"] == [first, second]
    assert "then spela" in as_text(describe(tmp_path))


def test_runs_of_older_versions_are_read_and_continued(tmp_path: Path) -> None:
    summary = _run(tmp_path)
    _rewritten(tmp_path / "checkpoint.safetensors", made_by=None, torch="2.7.0")
    made_by = summary.pop("made_by")
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert "made by: torch 2.7.0\n" in as_text(describe(tmp_path))
    page = write_report(RunFolder(tmp_path), load_run(tmp_path), DATA).read_text(encoding="utf-8")
    assert f"Made by torch {summary['torch']}.</p>" in page
    assert _run(tmp_path, 2, resume=True)["made_by"] == [{"torch": "2.7.0"}, *made_by]


def test_a_summary_of_another_maker_is_not_the_run_s(tmp_path: Path) -> None:
    summary = _run(tmp_path)
    summary["made_by"][0]["source"] = "0" * 12
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ValueError, match=r"made_by in summary.json is not that of checkpoint"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("wrote", "words"),
    [
        ("9.9.9", f"was written by spela 9.9.9, and this is {spela.__version__}, which cannot"),
        (spela.__version__, "damaged, not SPELA's, or of another version"),
    ],
)
def test_settings_of_another_version_are_no_damage(tmp_path: Path, wrote: str, words: str) -> None:
    _run(tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    config = {**load_checkpoint(path).config.to_dict(), "unheard_of": 1}
    _rewritten(path, config=config, made_by=[{"spela": wrote}])
    with pytest.raises(ValueError, match=words) as refused:
        load_run(tmp_path)
    assert "unheard_of" in str(refused.value)


def test_the_digest_tells_sources_apart_and_nothing_else(tmp_path: Path) -> None:
    def digest(**files: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name, text in files.items():
            (folder / name.replace("_", ".")).write_bytes(text.encode())
        return machine.source_digest([folder])

    first = digest(a_py="x = 1\n", b_c="int x;")
    assert digest(b_c="int x;", a_py="x = 1\r\n", a_so="built", a_pyc="cached") == first
    others = [
        digest(a_py="x = 2\n", b_c="int x;"),
        digest(a_py="x = 1\n", b_c="int y;"),
        digest(a_py="x = 1\n", b_h="int x;"),
        digest(a_py="x = 1\n"),
    ]
    assert len({first, *others}) == 5
