"""What needs no second process: shares, stages, joint modules, refusals."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from spela import Frozen, SpelaBlock, SpelaLinear, SpelaSequential
from spela.data import load_dataset
from spela.distributed import (
    DataParallelSequential,
    LayerParallelSequential,
    Ranks,
    SharedRunFolder,
    run_parallel,
)
from spela.distributed.joint import JointDropout, join_modules
from spela.distributed.pipe import Inlet, Outlet
from spela.distributed.ranks import Pending
from spela.distributed.trainers import DataParallelTrainer, LayerParallelTrainer
from spela.experiments import make_config
from spela.optim import LocalSGD

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


@dataclass(frozen=True)
class Logged(Ranks):
    """Writes down what is begun and waited for, and moves nothing."""

    log: list[str] = field(default_factory=list)

    def start_sum(self, tensor: Tensor) -> Pending:
        return self._begin(f"sum {tuple(tensor.shape)}", tensor)

    def start_send(self, tensor: Tensor, to: int) -> Pending:
        return self._begin(f"send {len(tensor)} to {to}", tensor)

    def start_receive(self, tensor: Tensor, source: int) -> Pending:
        return self._begin(f"receive {len(tensor)}", tensor.zero_())

    def _begin(self, what: str, tensor: Tensor) -> Pending:
        self.log.append(what)
        return Pending(self, SimpleNamespace(wait=lambda: self.log.append(f"end {what}")), tensor)


def test_a_layer_is_summed_while_the_next_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Logged(0, 1, torch.device("cpu"), 60.0)
    layers = [SpelaLinear(4, 6, 3, bias=False), SpelaLinear(6, 5, 3, bias=False)]
    for index, layer in enumerate(layers):

        def told(
            x: Tensor, target: Tensor, layer: SpelaLinear = layer, index: int = index
        ) -> tuple[Tensor, Tensor]:
            ranks.log.append(f"forward {index}")
            return type(layer).local_loss(layer, x, target)

        monkeypatch.setattr(layer, "local_loss", told)
    net = DataParallelSequential(SpelaSequential(*layers), ranks)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net.local_step(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]), optimizer)
    assert ranks.log == [
        "forward 0",
        "sum (6, 4)",
        "forward 1",
        "sum (5, 6)",
        "end sum (6, 4)",
        "end sum (5, 6)",
    ]


def test_several_batches_are_in_flight() -> None:
    ranks = Logged(1, 3, torch.device("cpu"), 60.0)
    outlet, inlet = Outlet(ranks, 2, torch.float32), Inlet(ranks, 2, (4,), torch.float32)
    for size in (9, 8, 7):
        outlet.put(torch.zeros(size, 4))
    # The third waits for the first to have left.
    assert ranks.log == ["send 37 to 2", "send 33 to 2", "end send 37 to 2", "send 29 to 2"]
    ranks.log.clear()
    inlet.expect([9, 8, 7])
    assert ranks.log == ["receive 37", "receive 33"]
    assert inlet.take(9).shape == (9, 4)
    assert ranks.log[2:] == ["end receive 37", "receive 29"]
    with pytest.raises(ValueError, match="a batch of 8 samples was expected next, got one of 7"):
        inlet.take(7)


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


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_dataset("digits")
    for recipe, form, message in (
        ("best", "model", "unknown parallel 'model': use one of data, layers"),
        ("backprop", "data", "SPELA networks only, not method 'backprop'"),
    ):
        with pytest.raises(ValueError, match=message):
            run_parallel(make_config("digits", recipe), data, tmp_path, ALONE, form)
    five = Ranks(0, 5, torch.device("cpu"), 60.0)
    with pytest.raises(ValueError, match="3 layers cannot be spread over 5 processes"):
        run_parallel(make_config("digits"), data, tmp_path, five, "layers")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="start it with torchrun"):
        Ranks.join()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(ValueError, match="got 'mps'"):
        Ranks.join("mps")


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (DataParallelTrainer, "net must be a DataParallelSequential, got SpelaSequential"),
        (LayerParallelTrainer, "net must be a LayerParallelSequential, got SpelaSequential"),
    ],
)
def test_a_trainer_refuses_another_network(
    trainer: type[DataParallelTrainer | LayerParallelTrainer], message: str, tmp_path: Path
) -> None:
    net, config = SpelaSequential(SpelaLinear(4, 8, 3)), make_config("digits")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    folder = SharedRunFolder(tmp_path, ALONE)
    with pytest.raises(TypeError, match=message):
        trainer(config, net, optimizer, load_dataset("digits"), folder)


def _block_net(*modules: nn.Module, **settings: float) -> SpelaSequential:
    x = torch.randn(4, 3, 6, 6)
    return SpelaSequential(
        SpelaBlock(nn.Sequential(nn.Conv2d(3, 4, 3), *modules), 3, x, **settings),  # type: ignore[arg-type]
        SpelaBlock(nn.Conv2d(4, 4, 3), 3, torch.randn(4, 4, 4, 4)),
    )


@pytest.mark.parametrize(
    ("modules", "settings", "message"),
    [
        ((), {"similarity": 0.5}, "a similarity loss would see each process's part"),
        ((nn.Dropout2d(0.2),), {}, "Dropout2d would see"),
        ((nn.RReLU(),), {}, "RReLU would see"),
        ((nn.SyncBatchNorm(4),), {}, "SyncBatchNorm would see"),
        ((nn.InstanceNorm2d(4, track_running_stats=True),), {}, "InstanceNorm2d would see"),
    ],
)
def test_what_sees_a_part_of_a_batch_alone_is_refused(
    modules: tuple[nn.Module, ...], settings: dict[str, float], message: str
) -> None:
    two = Ranks(0, 2, torch.device("cpu"), 60.0)
    with pytest.raises(ValueError, match=message):
        join_modules(_block_net(*modules, **settings), two)
    assert join_modules(_block_net(nn.BatchNorm2d(4), dropout=0.1), two)  # these have joint forms
    # A sample's own, and what is frozen, is the same in any batch.
    frozen = Frozen(
        nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(4), nn.Dropout1d(), nn.Unflatten(2, (4, 4)))
    )
    assert not join_modules(nn.Sequential(nn.InstanceNorm2d(4), frozen), two)


@pytest.mark.parametrize(
    ("modules", "settings"), [((), {"dropout": 0.1}), ((nn.Dropout(0.2),), {}), ((nn.RReLU(),), {})]
)
def test_draws_inside_a_block_cannot_be_spread(
    modules: tuple[nn.Module, ...], settings: dict[str, float]
) -> None:
    two = Ranks(0, 2, torch.device("cpu"), 60.0)
    with pytest.raises(ValueError, match="draws on one process alone"):
        LayerParallelSequential(_block_net(*modules, **settings), two, (3, 6, 6))


@pytest.mark.parametrize("between", [nn.Dropout1d(0.2), nn.Sequential(nn.Dropout(0.2))])
def test_draws_between_layers_that_others_cannot_draw_as_well_are_refused(
    between: nn.Module,
) -> None:
    two = Ranks(0, 2, torch.device("cpu"), 60.0)
    net = SpelaSequential(SpelaLinear(4, 4, 3), between, SpelaLinear(4, 4, 3))
    with pytest.raises(ValueError, match="draws on one process alone"):
        LayerParallelSequential(net, two, (4,))


class Twice(Logged):
    """One of two processes, which hold the same rows."""

    def stack(self, tensor: Tensor) -> Tensor:
        return torch.stack([tensor, tensor])


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_joint_batch_norm_is_torchs_of_both_parts(affine: bool, dtype: torch.dtype) -> None:
    # Far from zero: a mean in 16 bits would be wrong by a third of the deviation.
    x = (30.3 + 0.1 * torch.randn(50, 3, 2, 2, generator=torch.Generator().manual_seed(0))).to(
        dtype
    )
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    torchs, ours = (nn.BatchNorm2d(3, affine=affine, dtype=kept) for _ in range(2))
    ranks = Twice(0, 2, torch.device("cpu"), 60.0)
    join_modules(ours, ranks)
    ours.share = ranks.share(100)
    expected, found = torchs(torch.cat([x, x]))[:50], ours(x)
    assert found.dtype == expected.dtype
    tolerance = {} if dtype == torch.bfloat16 else {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(found, expected, **tolerance)
    torch.testing.assert_close(ours.running_mean, torchs.running_mean)
    torch.testing.assert_close(ours.running_var, torchs.running_var)


def test_a_joint_batch_of_one_value_a_channel_is_refused_before_statistics_move() -> None:
    norm = nn.BatchNorm2d(2)
    join_modules(nn.Sequential(norm), ALONE)
    norm.share = ALONE.share(1)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    with pytest.raises(ValueError, match="one value a channel"):
        norm(torch.randn(1, 2, 1, 1))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


class _Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 6), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


X, Y = torch.randn(6, 4), torch.tensor([0, 1, 2] * 2)


def _parallel(form: str, *modules: nn.Module) -> SpelaSequential:
    net = SpelaSequential(*(modules or (SpelaLinear(4, 8, 3), SpelaLinear(8, 8, 3))))
    return _joined(form, net)


class Lone(Logged):
    """A process that is alone and sums all the same."""

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor


def _joined(form: str, net: SpelaSequential) -> SpelaSequential:
    ranks = Lone(0, 1, torch.device("cpu"), 60.0)
    if form == "data":
        return DataParallelSequential(net, ranks)
    return LayerParallelSequential(net, ranks, (4,))


@pytest.mark.parametrize("form", ["data", "layers"])
def test_pre_hooks_change_what_a_parallel_network_sees(form: str) -> None:
    torch.manual_seed(0)
    plain = _parallel(form)
    torch.manual_seed(0)
    hooked = _parallel(form)
    hooked.register_forward_pre_hook(lambda module, args: (args[0].flip(1),))
    rivals = ((hooked, X), (plain, X.flip(1)))
    losses = [net.local_step(x, Y, LocalSGD(net.parameters(), lr=0.1)) for net, x in rivals]
    assert torch.equal(*losses)
    assert all(map(torch.equal, hooked.layer_scores(X), plain.layer_scores(X.flip(1))))
    assert torch.equal(hooked.predict(X), plain.predict(X.flip(1)))
    watched = SpelaSequential(SpelaLinear(4, 8, 3))
    watched.register_forward_pre_hook(lambda module, args: None)
    with pytest.raises(ValueError, match="forward pre-hook"):
        _joined(form, watched)


def test_steps_of_many_batches_are_shared_one_by_one() -> None:
    torch.manual_seed(0)
    one = _parallel("data")
    torch.manual_seed(0)
    other = _parallel("data")
    optimizers = [LocalSGD(net.parameters(), lr=0.1) for net in (one, other)]
    found = one.local_steps(X, Y, optimizers[0], 3)
    expected = [
        other.local_step(x, y, optimizers[1]) for x, y in zip(X.split(3), Y.split(3), strict=True)
    ]
    assert torch.equal(found, torch.stack(expected))


def test_what_needs_all_layers_is_refused_where_they_are_apart() -> None:
    net = _parallel("layers")
    for call in (
        lambda: net.local_steps(X, Y, LocalSGD(net.parameters(), lr=0.1), 3),
        lambda: net.local_losses(X, Y),
        lambda: net.predict(X, 0.3),
        lambda: net.predict_detailed(X),
    ):
        with pytest.raises(ValueError, match="layers in several processes"):
            call()


def test_a_wrong_label_is_found_by_every_process_before_it_takes_its_rows() -> None:
    wrong = Y.clone()
    wrong[-1] = 7
    for form in ("data", "layers"):
        net = _parallel(form)
        net.ranks = Ranks(0, 2, torch.device("cpu"), 60.0)
        with pytest.raises(ValueError, match=r"labels 0\.\.2, got 7"):
            net.local_step(X, wrong, LocalSGD(net.parameters(), lr=0.1))


@pytest.mark.parametrize("rank", [0, 1])
def test_labels_that_are_too_few_are_found_by_every_process_of_layers(rank: int) -> None:
    two = Ranks(rank, 2, torch.device("cpu"), 60.0)
    net = _parallel("layers")
    net.ranks = two
    with pytest.raises(ValueError, match=rf"one label per sample, \({len(X)},\)"):
        net.local_step(X, Y[:-1], LocalSGD(net.parameters(), lr=0.1))


def test_a_parameter_that_the_loss_does_not_use_stays() -> None:
    net = _parallel("data", SpelaBlock(_Unused(), 3, X))
    before = net[0].body.unused.weight.clone()
    net.local_step(X, Y, LocalSGD(net.parameters(), lr=0.1, weight_decay=0.1))
    assert torch.equal(net[0].body.unused.weight, before)


def test_a_mask_of_another_stage_is_drawn_all_the_same() -> None:
    net = LayerParallelSequential(SpelaSequential(SpelaLinear(4, 8, 3)), ALONE, (4,))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nn.functional.dropout(torch.ones(5, 4), 0.3)
        expected = torch.rand(3)
        torch.manual_seed(0)
        net._skip(nn.Dropout(0.3), 5, (4,))
        assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("error", [ValueError, OSError, RuntimeError, KeyError])
def test_any_error_of_rank_0_is_told_to_the_ranks_that_wait(error: type[Exception]) -> None:
    told: list[bytes] = []

    class Telling(Ranks):
        def _broadcast(self, message: bytes) -> bytes:
            told.append(message)
            return message

    def fails() -> None:
        raise error("no such thing")

    with pytest.raises(error, match="no such thing"):
        Telling(0, 2, torch.device("cpu"), 60.0).from_main(fails)
    assert [list(json.loads(message)) for message in told] == [["error"]]


def test_names_of_a_named_network_stay() -> None:
    for form in (
        lambda net: DataParallelSequential(net, ALONE),
        lambda net: LayerParallelSequential(net, ALONE, (4,)),
    ):
        net = SpelaSequential(OrderedDict(fc=SpelaLinear(4, 8, 3), out=SpelaLinear(8, 8, 3)))
        keys = list(net.state_dict())
        assert list(form(net).state_dict()) == keys


@pytest.mark.parametrize(
    ("make", "samples", "match"),
    [
        (
            lambda: (
                SpelaLinear(4, 8, 3),
                SpelaBlock(nn.Linear(8, 8), 3, torch.ones(2, 8), similarity=0.5),
            ),
            1,
            "batches of at least 2",
        ),
        (lambda: (SpelaLinear(4, 8, 5), SpelaLinear(8, 8, 3)), 2, "classes"),
    ],
    ids=["one sample", "classes"],
)
def test_layers_apart_refuse_before_one_learns(
    make: Callable[[], tuple[nn.Module, ...]], samples: int, match: str
) -> None:
    net = LayerParallelSequential(SpelaSequential(*make()), ALONE, (4,))
    before = net[0].weight.detach().clone()
    with pytest.raises(ValueError, match=match):
        net.local_step(
            torch.randn(samples, 4), torch.arange(samples), LocalSGD(net.parameters(), lr=1.0)
        )
    assert torch.equal(net[0].weight, before)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_module_that_two_processes_need_is_refused(rank: int) -> None:
    shared = Frozen(nn.Linear(8, 8))
    net = SpelaSequential(
        SpelaLinear(4, 8, 3), shared, SpelaLinear(8, 8, 3), shared, SpelaLinear(8, 8, 3)
    )
    with pytest.raises(
        ValueError, match="module 3 has tensors of a module that another process holds"
    ):
        LayerParallelSequential(net, Ranks(rank, 2, torch.device("cpu"), 5.0), (4,))
    assert not any(parameter.is_meta for parameter in net.parameters())
    LayerParallelSequential(net, ALONE, (4,))
    with pytest.raises(ValueError, match="`in_flight` must be"):
        LayerParallelSequential(net, ALONE, (4,), in_flight=0)


def test_a_part_of_one_sample_has_the_joint_batchs_statistics() -> None:
    """Maps of one pixel: what counts is the joint batch, here of two on two processes."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)).double()
    ranks = Twice(0, 2, torch.device("cpu"), 60.0)
    (norm,) = join_modules(layer, ranks)
    norm.share = ranks.share(2)
    # Two equal parts: every value is the joint mean.
    y = layer(torch.randn(2, 2, 3, 3).double()[norm.share.rows])
    torch.testing.assert_close(y, torch.zeros(1, 4, 1, 1).double(), rtol=0, atol=1e-6)
    norm.share = ALONE.share(1)
    with pytest.raises(ValueError, match="one value a channel"):
        layer(torch.randn(1, 2, 3, 3).double())
