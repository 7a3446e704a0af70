"""Writes that are whole or absent, over whatever lies at the path."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from spela.experiments.plan import Options
from spela.experiments.runner import writing_results
from spela.files.atomic import Content, write_all_atomically, write_atomically
from spela.files.tensors import save_tensors
from spela.training import RunFolder
from spela.training.lock import LOCK_FILE


def _text(text: str):
    return lambda name: Path(name).write_text(text)


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(Path("there") / "target")
    write_atomically(link, _text("new"))
    assert link.is_symlink()
    assert target.read_text() == "new"


def _through_a_pipe(pipe: Path, write: Callable[[], None]) -> bytes:
    """What comes out of a pipe while it is written to, which it still is afterwards."""
    found: list[bytes] = []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    write()
    reader.join(10)
    assert pipe.is_fifo()
    return found[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("content", ["through", b"through", _text("through")])
def test_a_pipe_is_written_to(tmp_path: Path, content: Content) -> None:
    pipe = tmp_path / "pipe"
    assert _through_a_pipe(pipe, lambda: write_atomically(pipe, content)) == b"through"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_tensors_go_into_a_pipe(tmp_path: Path) -> None:
    pipe, a = tmp_path / "pipe", torch.arange(3.0)
    found = _through_a_pipe(pipe, lambda: save_tensors(pipe, {"a": a}, {"format": "pt"}))
    assert torch.equal(safetensors.torch.load(found)["a"], a)


def test_what_a_killed_writer_leaves_of_tensors_is_removed_by_the_next(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
import torch
from spela.files import tensors
from spela.training import RunFolder

def killed(held, name, metadata):
    Path(name).with_name(".tmpAbCdEf").write_bytes(b"half")  # as safetensors names its own
    os._exit(9)

tensors.save_file = killed
tensors.save_tensors(RunFolder(sys.argv[1]).checkpoint, {"a": torch.ones(2)}, {"format": "pt"})
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=100)
    assert done.returncode == 9
    assert list(tmp_path.rglob(".tmpAbCdEf"))
    with RunFolder(tmp_path).writing():
        assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


def test_what_killed_writers_of_pictures_and_tables_leave_is_removed(tmp_path: Path) -> None:
    run, results = tmp_path / "run", tmp_path / "results"
    files = [run / "plots" / "loss.png", results / "cnn.json", results / "plots" / "cnn.png"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        code = """
import os, sys
from pathlib import Path
from spela.files.atomic import write_atomically
write_atomically(Path(sys.argv[1]), lambda _: os._exit(9))
"""
        done = subprocess.run([sys.executable, "-c", code, str(file)], timeout=100)
        assert done.returncode == 9
        assert len(list(file.parent.glob(f".{file.name}.*"))) == 1
        (file.parent / ".mine.1.tmp").write_bytes(b"of somebody else")
    with RunFolder(run).writing(), writing_results(Options(results)):
        pass
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {LOCK_FILE, ".mine.1.tmp"}


def test_a_folder_in_a_files_place_is_found_before_the_others_are_replaced(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("old")
    second.mkdir()
    with pytest.raises(OSError, match=r"cannot write .*second: Is a directory"):
        write_all_atomically({first: _text("new"), second: _text("new")})
    assert first.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


def test_a_loop_of_links_is_replaced(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    write_atomically(loop, _text("new"))
    assert loop.read_text() == "new"
