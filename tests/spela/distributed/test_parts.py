"""What needs no second process: shares, stages, joint modules, refusals."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from spela import SpelaLinear, SpelaSequential
from spela.data import load_dataset
from spela.distributed import DataParallelSequential, LayerParallelSequential, Ranks, run_parallel
from spela.distributed.joint import JointDropout, join_modules
from spela.distributed.stages import split_evenly
from spela.experiments import make_config

ALONE = Ranks(0, 1, torch.device("cpu"), 60.0)


@pytest.mark.parametrize(("total", "size"), [(100, 2), (7, 3), (3, 3), (2, 3), (1, 4)])
def test_shares_cover_a_batch_once(total: int, size: int) -> None:
    shares = [Ranks(rank, size, torch.device("cpu"), 60.0).share(total) for rank in range(size)]
    assert sum(share.weight for share in shares) == pytest.approx(1)
    rows = [row for share in shares for row in range(total)[share.rows]]
    assert rows == list(range(total)) * (size if total < size else 1)
    for share in shares:
        if not share.whole:
            assert share.weight == len(range(total)[share.rows]) / total > 0


@pytest.mark.parametrize(
    "costs", [(5,), (1, 2, 3, 4), (4, 3, 2, 1), (0, 0, 7), (3, 3, 1, 9, 2, 2), (1,) * 7]
)
def test_no_split_has_a_faster_slowest_stage(costs: tuple[int, ...]) -> None:
    for parts in range(1, len(costs) + 1):
        found = split_evenly(costs, parts)
        assert sorted(set(found)) == list(range(parts))
        assert found == sorted(found)
        slowest = max(
            sum(c for c, p in zip(costs, found, strict=True) if p == k) for k in set(found)
        )
        best = min(
            max(sum(costs[a:b]) for a, b in itertools.pairwise((0, *cuts, len(costs))))
            for cuts in itertools.combinations(range(1, len(costs)), parts - 1)
        )
        assert slowest == best
    with pytest.raises(ValueError, match="cannot be spread over"):
        split_evenly(costs, len(costs) + 1)


def test_parts_of_a_joint_mask_make_one_process_mask() -> None:
    x = torch.randn(7, 3, 2)
    torch.manual_seed(0)
    expected = nn.functional.dropout(x, 0.4)
    for rank in range(3):
        module = nn.Sequential(nn.Dropout(0.4))
        (joint,) = join_modules(module, ALONE)
        joint.share = Ranks(rank, 3, torch.device("cpu"), 60.0).share(7)
        torch.manual_seed(0)
        assert torch.equal(module(x[joint.share.rows]), expected[joint.share.rows])
    module.eval()
    assert torch.equal(module(x), x)
    assert isinstance(module[0], JointDropout)


def test_names_and_weights_stay() -> None:
    def net() -> SpelaSequential:
        g = torch.Generator().manual_seed(0)
        return SpelaSequential(nn.Flatten(), SpelaLinear(4, 6, 3, generator=g))

    expected = net().state_dict()
    for made in (
        DataParallelSequential(net(), ALONE),
        LayerParallelSequential(net(), ALONE, (2, 2)),
    ):
        state = made.state_dict()
        assert list(state) == list(expected)
        assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_refusals(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_dataset("digits")
    for recipe, form, message in (
        ("best", "model", "unknown parallel 'model': use one of data, layers"),
        ("backprop", "data", "SPELA networks only, not method 'backprop'"),
    ):
        with pytest.raises(ValueError, match=message):
            run_parallel(make_config("digits", recipe), data, str(tmp_path), ALONE, form)
    five = Ranks(0, 5, torch.device("cpu"), 60.0)
    with pytest.raises(ValueError, match="3 layers cannot be spread over 5 processes"):
        run_parallel(make_config("digits"), data, str(tmp_path), five, "layers")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="start it with torchrun"):
        Ranks.join()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(ValueError, match="got 'mps'"):
        Ranks.join("mps")
