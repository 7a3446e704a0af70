"""Compiled modules are used where they were made of the C files beside them, and only there."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import spela_kernels
from spela_kernels.cpu import sources
from spela_kernels.cpu.sources import SOURCES, built_module, checksum

FOLDER = Path(spela_kernels.__file__).parent
built = pytest.mark.skipif(
    built_module("spela_kernels.linear._rows") is None, reason="not compiled here"
)


def included(file: Path) -> set[Path]:
    """The file, and what it and its headers include of the project's own."""
    names = re.findall(r'#include "(.+)"', file.read_text(encoding="utf-8"))
    return {file}.union(*(included((file.parent / name).resolve()) for name in names))


@pytest.mark.parametrize("name", SOURCES)
def test_the_table_lists_what_each_module_includes(name):
    listed = [(FOLDER / source).resolve() for source in SOURCES[name]]
    assert set(listed) == included(listed[0])
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("name", SOURCES)
def test_the_checksum_moves_with_every_listed_file(name, tmp_path):
    shutil.copytree(
        FOLDER, tmp_path / "k", ignore=shutil.ignore_patterns("*.py", "*.so", "__pycache__")
    )
    before = checksum(name, tmp_path / "k")
    assert before == checksum(name, FOLDER)
    for source in SOURCES[name]:
        with (tmp_path / "k" / source).open("a", encoding="utf-8") as file:
            file.write("/* changed */\n")
        after = checksum(name, tmp_path / "k")
        assert after not in (None, before)
        before = after
    (tmp_path / "k" / SOURCES[name][-1]).unlink()
    assert checksum(name, tmp_path / "k") is None


@built
@pytest.mark.parametrize("name", SOURCES)
def test_a_module_older_than_its_sources_stays_unused_with_one_warning(name, monkeypatch, caplog):
    module = import_module(name)
    assert built_module(name) is module
    sources._warn_once.cache_clear()
    for stale in (module.SOURCES + 1, None):  # None: built before modules knew their sources
        monkeypatch.setattr(module, "SOURCES", stale)
        with caplog.at_level(logging.WARNING):
            assert built_module(name) is None
    assert caplog.text.count("build them again") == 1
    sources._warn_once.cache_clear()


@built
def test_a_module_without_its_sources_beside_it_is_used(monkeypatch):
    monkeypatch.setattr(sources, "checksum", lambda name, folder: None)
    assert built_module("spela_kernels.linear._rows") is import_module("spela_kernels.linear._rows")


@built
def test_modules_call_their_own_functions_where_symbols_are_shared():
    """As some programs load every extension: a name in two of them would be the first one's function."""
    code = """
import os, sys
import torch
flags = sys.getdlopenflags()
sys.setdlopenflags(os.RTLD_GLOBAL | os.RTLD_NOW)
import spela_kernels.{0}, spela_kernels.{1}
sys.setdlopenflags(flags)
from spela import SpelaConv2d, SpelaLinear
from spela.optim import LocalSGD
layer = SpelaConv2d(1, 4, 3, 3, (3, 3), symmetric_dim=8)
layer.local_step(torch.rand(5, 1, 8, 8), torch.arange(5) % 3, LocalSGD(layer.parameters(), 0.1))
layer = SpelaLinear(20, 24, 5, activation="tanh")
layer.local_step(torch.rand(5, 20), torch.arange(5), LocalSGD(layer.parameters(), 0.1))
print("done")
"""
    modules = ("linear._rows", "pooling._windows")
    for order in (modules, modules[::-1]):
        done = subprocess.run(
            [sys.executable, "-c", code.format(*order)], capture_output=True, text=True
        )
        assert done.stdout == "done\n", done.stderr[-2000:]
