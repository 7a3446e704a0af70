"""Writes that are whole or absent, over whatever lies at the path."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch

from spela.files.atomic import write_all_atomically, write_atomically
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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    write_atomically(pipe, _text("through"))
    reader.join(10)
    assert found == ["through"]
    assert pipe.is_fifo()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_tensors_go_into_a_pipe_and_leave_it_one(tmp_path: Path) -> None:
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    save_tensors(pipe, {"a": torch.arange(3.0)}, {"format": "pt"})
    reader.join(10)
    assert pipe.is_fifo()
    assert torch.equal(safetensors.torch.load(found[0])["a"], torch.arange(3.0))


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
