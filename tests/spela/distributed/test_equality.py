"""Two processes against one: equal to rounding when they share batches, to the bit when they share layers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from spela.experiments import build_network, build_optimizer, load_run, run
from spela.training import RunFolder, Trainer, read_evidence
from tests.spela.distributed import workers

ROOT = Path(__file__).resolve().parents[3]
LAYERS = {"mlp": (1, 4, 6), "cnn": (0, 1, 4)}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _half_a_run(out: Path) -> None:
    """The first of two epochs, in one process."""
    config, data = workers.config(), workers.dataset()
    net = build_network(config, data.sample_shape, data.num_classes)
    trainer = Trainer(config, net, build_optimizer(config, net), data, RunFolder(out))
    trainer.start()
    trainer.folder.append_metrics(trainer.run_epoch(0))
    trainer.epochs_done = 1
    trainer._checkpoint()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes left what they computed."""
    out = tmp_path_factory.mktemp("ranks")
    for form in ("data", "layers"):
        _half_a_run(out / "half" / form)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    common = {**os.environ, **job, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    processes = [
        subprocess.Popen(
            [sys.executable, workers.__file__, str(out)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, error = process.communicate(timeout=400)
            assert process.returncode == 0, error
    finally:
        for process in processes:
            process.kill()
    return out


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, torch.Tensor]]:
    """Every case in this process."""
    found = {}
    for name, (_, _, optimizer, _) in workers.CASES.items():
        net = workers.start(name)
        found[name] = workers.train(net, optimizer(list(net.parameters())), name)
    return found


@pytest.mark.parametrize("name", [name for name in workers.CASES if "float32" not in name])
def test_data_parallel_equals_one_process_within_rounding(
    name: str, done: Path, alone: dict[str, dict[str, torch.Tensor]]
) -> None:
    first, second = (load_file(done / f"{name} data {rank}") for rank in range(2))
    assert first.keys() == alone[name].keys()
    losses = first.pop("losses") + second.pop("losses")
    # Adam divides by gradients that are all rounding where batch norm makes them zero.
    close = {"rtol": 1e-6, "atol": 1e-6} if "adam" in name else {"rtol": 1e-11, "atol": 1e-12}
    torch.testing.assert_close(losses, alone[name]["losses"], **close)
    for key, value in first.items():
        assert torch.equal(value, second[key]), f"ranks disagree on {key}"
        torch.testing.assert_close(value, alone[name][key], **close, msg=key)


def test_frozen_layers_stay(done: Path) -> None:
    before = workers.start("mlp sgd").state_dict()
    after = load_file(done / "mlp sgd data 0")
    assert torch.equal(before["1.weight"], after["1.weight"])
    assert not torch.equal(before["4.weight"], after["4.weight"])


@pytest.mark.parametrize("name", workers.CASES)
def test_layer_parallel_equals_one_process_to_the_bit(
    name: str, done: Path, alone: dict[str, dict[str, torch.Tensor]]
) -> None:
    parts = [load_file(done / f"{name} layers {rank}") for rank in range(2)]
    expected = dict(alone[name])
    losses = parts[0].pop("losses") + parts[1].pop("losses")
    assert torch.equal(losses, expected.pop("losses"))
    for part in parts:
        for key, value in part.items():
            assert torch.equal(value, expected[key]), key
    held = [{k for k in part if not k.startswith("scores")} for part in parts]
    assert held[0]
    assert held[1]
    assert not held[0] & held[1]
    assert held[0] | held[1] == {k for k in expected if not k.startswith("scores")}


# How long a step takes, and what it takes, is the machine's: time, and buffers that libraries make a thread.
_OF_THE_MACHINE = {"seconds", "peak_memory_bytes"}


def _records(path: Path) -> list[dict[str, Any]]:
    evidence = read_evidence(RunFolder(path))
    config = evidence.summary["config"] if evidence.summary else {}
    records = [
        {k: v for k, v in record.items() if k not in _OF_THE_MACHINE} for record in evidence.records
    ]
    for record in records[
        config["epochs"] :
    ]:  # one process reads a frozen layer's loss once, not by epoch
        record["train_loss"] = record["train_loss"][len(config["channels"]) :]
    return records


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("run", {}), ("cnn", workers.CNN_RUN), ("blocks", workers.BLOCK_RUN)],
    ids=["run", "cnn", "blocks"],
)
def test_a_layer_parallel_run_leaves_what_one_process_leaves(
    kind: str, changes: dict[str, object], done: Path, tmp_path: Path
) -> None:
    run(workers.config(**changes), workers.dataset(), tmp_path / "one")
    name = f"{kind}-layers"
    paths = [tmp_path / "one", done / name, *([] if changes else [done / "half" / "layers"])]
    one, *others = [load_file(path / "checkpoint.safetensors") for path in paths]
    for other in others:
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    for path in paths[1:]:
        assert _records(path) == _records(paths[0])
    summary = json.loads((done / name / "summary.json").read_text())
    assert (summary["parallel"], summary["ranks"]) == ("layers", 2)
    assert summary["parameters"] == sum(p.numel() for p in load_run(done / name).net.parameters())


def test_a_run_given_more_epochs_leaves_what_one_process_leaves(done: Path, tmp_path: Path) -> None:
    run(workers.config(), workers.dataset(), tmp_path / "one")
    longer = workers.config(epochs=3)
    run(longer, workers.dataset(), tmp_path / "one", resume=True, extend=True)
    paths = (tmp_path / "one", done / "more-layers")
    one, spread = [load_file(path / "checkpoint.safetensors") for path in paths]
    assert one.keys() == spread.keys()
    assert all(torch.equal(one[key], spread[key]) for key in one)
    assert _records(paths[1]) == _records(paths[0])
    for path in (*paths, done / "more-data"):
        summary = read_evidence(RunFolder(path)).summary
        assert summary is not None
        assert (summary["epochs"], summary["extended_at"]) == (3, [2])


def test_a_data_parallel_run_leaves_what_one_process_leaves(done: Path, tmp_path: Path) -> None:
    run(workers.config(), workers.dataset(), tmp_path / "one")
    one = load_file(tmp_path / "one" / "checkpoint.safetensors")
    for path in (done / "run-data", done / "half" / "data"):
        joint = load_file(path / "checkpoint.safetensors")
        assert one.keys() == joint.keys()
        for key, value in joint.items():
            torch.testing.assert_close(value, one[key], rtol=1e-3, atol=1e-4, msg=key)
        assert [r["epoch"] for r in _records(path)] == [1, 2]


def test_a_data_parallel_run_of_blocks_is_within_rounding(done: Path, tmp_path: Path) -> None:
    run(workers.config(**workers.BLOCK_RUN), workers.dataset(), tmp_path / "one")
    paths = (tmp_path / "one", done / "blocks-data")
    one, joint = [load_file(path / "checkpoint.safetensors") for path in paths]
    assert one.keys() == joint.keys()
    for key in (
        "model.0.projection",
        "model.2.head.hidden.weight",
        "model.1.head.hidden.norm.running_mean",
    ):
        torch.testing.assert_close(joint[key], one[key], rtol=1e-2, atol=1e-3, msg=key)


def test_an_error_of_rank_0_is_an_error_of_all(done: Path) -> None:
    for form in ("data", "layers"):
        for rank in range(2):
            assert "already holds a run" in (done / f"refused {form} {rank}").read_text()
