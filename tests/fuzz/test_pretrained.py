"""Damaged folders of saved networks: a network, or a documented error in one line; no crash, no blow-up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fuzz_damage import damaged_bytes, damaged_json
from fuzz_limits import bounded_memory, check_error, fuzz
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from spela import SpelaSequential
from spela.pretrained.folder import CONFIG, WEIGHTS
from tests.spela.pretrained.networks import NETWORKS


@pytest.fixture(scope="module", params=NETWORKS)
def good(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("networks") / request.param
    NETWORKS[request.param]()[0].save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def bad(good: Path) -> Path:
    folder = good.parent / "bad"
    folder.mkdir(exist_ok=True)
    for name in (CONFIG, WEIGHTS):
        (folder / name).write_bytes((good / name).read_bytes())
    return folder


def _use(folder: Path) -> None:
    with bounded_memory():
        try:
            SpelaSequential.from_pretrained(folder)
        except ValueError as error:
            check_error(error)


@fuzz(40)
@given(data=st.data())
def test_damaged_bytes(good, bad, data):
    name = data.draw(st.sampled_from([CONFIG, WEIGHTS]))
    content = (good / name).read_bytes()
    head = 8 + int.from_bytes(content[:8], "little") if name == WEIGHTS else len(content)
    (bad / name).write_bytes(data.draw(damaged_bytes(content, head=head)))
    _use(bad)
    (bad / name).write_bytes(content)


@fuzz(100)
@given(data=st.data())
def test_a_sound_file_with_a_damaged_config(good, bad, data):
    config = data.draw(damaged_json(json.loads((good / CONFIG).read_text())))
    (bad / CONFIG).write_text(json.dumps(config))
    # The weights do not say which config was theirs, as those that other tools write.
    save_file(load_file(good / WEIGHTS), bad / WEIGHTS, {"format": "pt"})
    _use(bad)
