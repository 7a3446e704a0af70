"""Writes that are whole or absent, over whatever lies at the path."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from spela.files.atomic import write_all_atomically, write_atomically


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
