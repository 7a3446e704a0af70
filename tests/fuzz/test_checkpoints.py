"""Damaged checkpoints: a network, or a documented error in one line; no crash, no memory blow-up."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz_damage import JSON, damaged_bytes, damaged_json
from fuzz_limits import bounded_memory, check_error, fuzz
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from spela.cli import main
from spela.data import load_dataset
from spela.experiments import build_network, build_optimizer, load_run, make_config, run
from spela.reports.card import as_markdown, as_text, describe
from spela.training import RunFolder, load_checkpoint, read_evidence, restore

MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"layers": (12, 11), "optimizer": "sgd", "momentum": 0.9, "lr": 0.1},
    "cnn": {
        "model": "cnn",
        "channels": (3,),
        "kernel_size": 3,
        "symmetric_dim": 9,
        "layers": (11,),
    },
}


@pytest.fixture(scope="module", params=MODELS)
def good(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / request.param
    data = load_dataset("digits").subset(train=40, test=20)
    run(make_config("digits", epochs=1, **MODELS[request.param]), data, out)
    return out


@pytest.fixture(scope="module")
def bad(good: Path) -> Path:
    folder = good.parent / "bad"
    folder.mkdir(exist_ok=True)
    return folder


def _use(folder: Path) -> None:
    """All that is done with a checkpoint: a network that answers and a card, or a documented error."""
    with bounded_memory():
        try:
            loaded = load_run(folder)
        except ValueError as error:
            check_error(error)
            return
        checkpoint = loaded.checkpoint
        card = describe(folder)
        assert "# Model card" in as_markdown(card)
        assert as_text(card)
        try:
            loaded.net.predict(torch.zeros(2, *checkpoint.sample_shape))
            classes = len(checkpoint.class_names)
            net = build_network(checkpoint.config, checkpoint.sample_shape, classes)
            optimizer = build_optimizer(checkpoint.config, net)
            restore(checkpoint, net, optimizer)
            x = torch.rand(2, *checkpoint.sample_shape)
            net.local_step(x, torch.zeros(2, dtype=torch.int64), optimizer)
        except ValueError as error:
            check_error(error)


@fuzz(60)
@given(data=st.data())
def test_damaged_bytes(good, bad, data):
    content = (good / "checkpoint.safetensors").read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    (bad / "checkpoint.safetensors").write_bytes(data.draw(damaged_bytes(content, head=size)))
    _use(bad)


@fuzz(60)
@given(data=st.data())
def test_a_damaged_header(good, bad, data):
    """The bytes are whole and the length is right; names, types, shapes, offsets, settings are not."""
    content = (good / "checkpoint.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = data.draw(damaged_json(json.loads(content[8 : 8 + size])))
    text = json.dumps(header).encode()
    new = len(text).to_bytes(8, "little") + text + content[8 + size :]
    (bad / "checkpoint.safetensors").write_bytes(new)
    _use(bad)


def _metadata(path):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


@fuzz(100)
@given(data=st.data())
def test_a_sound_file_with_damaged_facts(good, bad, data):
    path = good / "checkpoint.safetensors"
    metadata = _metadata(path)
    facts = data.draw(damaged_json(json.loads(metadata["run"])))
    metadata["run"] = json.dumps(facts)
    save_file(load_file(path), bad / "checkpoint.safetensors", metadata)
    _use(bad)


DTYPES = (torch.float64, torch.float16, torch.bool, torch.int8, torch.int64, torch.complex64)


@fuzz(40)
@given(data=st.data())
def test_a_sound_file_with_other_tensors(good, bad, data):
    path = good / "checkpoint.safetensors"
    metadata = _metadata(path)
    tensors = load_file(path)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(tensors)))
        kind = data.draw(st.sampled_from(["remove", "rename", "dtype", "shape", "values", "empty"]))
        tensor = tensors.pop(name)
        if kind == "rename":
            tensors[name + data.draw(st.text(max_size=3))] = tensor
        elif kind == "dtype":
            tensors[name] = tensor.to(data.draw(st.sampled_from(DTYPES)))
        elif kind == "shape":
            tensors[name] = tensor[None].contiguous()
        elif kind == "empty":
            tensors[name] = torch.empty(0)
        elif kind == "values":
            value = data.draw(st.sampled_from([float("nan"), float("inf"), -1, 0, 127, 1e30]))
            integers = not tensor.is_floating_point()
            tensors[name] = torch.full_like(tensor, 99 if integers else value)
        if not tensors:
            break
    save_file(tensors, bad / "checkpoint.safetensors", metadata)
    _use(bad)


@fuzz(30)
@given(record=st.one_of(JSON, st.none()), data=st.data())
def test_damaged_records_beside_a_sound_checkpoint(good, bad, record, data):
    (bad / "checkpoint.safetensors").write_bytes((good / "checkpoint.safetensors").read_bytes())
    line = json.loads((good / "metrics.jsonl").read_text())
    line = data.draw(damaged_json(line)) if record is None else record
    content = data.draw(damaged_bytes(json.dumps(line).encode() + b"\n"))
    whole = data.draw(st.booleans())
    (bad / "metrics.jsonl").write_bytes(json.dumps(line).encode() + b"\n" if whole else content)
    try:
        _use(bad)
    finally:
        (bad / "metrics.jsonl").unlink()


@fuzz(30)
@given(data=st.data())
def test_the_command_line_says_it_in_one_line(good, bad, data):
    content = (good / "checkpoint.safetensors").read_bytes()
    command = data.draw(st.sampled_from([["info"], ["info", "--card"], ["evaluate"], ["predict"]]))
    arguments = [*command, str(bad), *(["none.png"] if command == ["predict"] else [])]
    (bad / "checkpoint.safetensors").write_bytes(data.draw(damaged_bytes(content)))
    with pytest.MonkeyPatch.context() as patch, bounded_memory():
        patch.setattr(sys, "argv", ["spela", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
    assert stop.value.code in (0, 2)


def test_a_huge_network_takes_no_memory(good, bad):
    """As `test_a_sound_file_with_damaged_facts` may find only once in a while."""
    checkpoint = load_checkpoint(good / "checkpoint.safetensors")
    from safetensors import safe_open

    with safe_open(good / "checkpoint.safetensors", framework="pt") as file:
        metadata = dict(file.metadata())
    for name in ("layers", "channels"):
        facts = json.loads(metadata["run"])
        if not facts["config"][name]:
            continue
        facts["config"][name][-1] = 2**31 - 1
        save_file(
            checkpoint.tensors,
            bad / "checkpoint.safetensors",
            {**metadata, "run": json.dumps(facts)},
        )
        with bounded_memory(), pytest.raises(ValueError, match="is damaged: its settings describe"):
            load_run(bad)


@fuzz(100)
@given(data=st.data())
def test_damaged_files_beside_a_sound_checkpoint(good, data):
    """Settings, summary and records: what they say is believed where they agree, or refused."""
    bad = good.parent / "beside"
    bad.mkdir(exist_ok=True)
    for path in good.glob("*.json*"):
        shutil.copy(path, bad)
    shutil.copy(good / "checkpoint.safetensors", bad)
    name = data.draw(st.sampled_from(["config.json", "summary.json", "metrics.jsonl"]))
    held = json.loads((good / name).read_text())  # one epoch: one line
    wrong = data.draw(damaged_json(held))
    (bad / name).write_text(json.dumps(wrong) + "\n")
    try:
        evidence = read_evidence(RunFolder(bad))
        assert evidence.summary is not None
        assert evidence.records[-1]["test_accuracy"] == evidence.summary["test_accuracy"]
    except ValueError as error:
        check_error(error)
    _use(bad)
