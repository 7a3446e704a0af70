"""A step as a graph: the eager step's bits in every network, and nothing on the way that no graph holds."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spela import (
    Frozen,
    GraphedStep,
    RowNorm,
    SpelaBlock,
    SpelaConv2d,
    SpelaLinear,
    SpelaSequential,
    graphed,
)
from spela.baselines import BackpropSequential
from spela.optim import LocalAdam, LocalSGD
from spela_kernels import ACTIVATIONS, OBJECTIVES, backend, use_backend
from tests.spela.tape import HostReadError, Recorder, Tape, recorder

__all__ = ["recorder"]

Build = Callable[[torch.Generator], Any]
Optimizers = dict[str, Callable[[nn.Module], torch.optim.Optimizer]]
B, C = 6, 3


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the compiled calls of small stacks, which a CPU takes where nothing records operators."""
    monkeypatch.setattr("spela.network.chain_of", lambda *given: None)
    monkeypatch.setattr("spela.layers.normalize.norm_fits", lambda x: False)


def _linear(objective: str = "log", activation: str = "leaky_relu") -> Build:
    def build(g: torch.Generator) -> SpelaSequential:
        settings: dict[str, Any] = {"objective": objective, "activation": activation}
        return SpelaSequential(
            nn.Flatten(),
            RowNorm("rms"),
            SpelaLinear(64, 9, C, generator=g, **settings),
            nn.Dropout(0.2),
            RowNorm("unit"),
            SpelaLinear(9, 5, C, generator=g, **settings),
        )

    return build


def _conv(objective: str, **settings: Any) -> Build:
    def build(g: torch.Generator) -> SpelaSequential:
        conv = {"symmetric_dim": 4, "objective": objective, "generator": g, **settings}
        return SpelaSequential(
            SpelaConv2d(1, 3, 3, C, (3, 3), **conv),
            nn.Flatten(),
            SpelaLinear(27, 5, C, generator=g),
        )

    return build


def _blocks(**settings: Any) -> Build:
    def build(g: torch.Generator) -> SpelaSequential:
        torch.manual_seed(0)
        first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        second = nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU())
        common = {"generator": g, "projection": 4, **settings}
        return SpelaSequential(
            SpelaBlock(first, C, torch.randn(2, 1, 8, 8), **common),
            SpelaBlock(second, C, torch.randn(2, 4, 6, 6), **common),
        )

    return build


def _backprop(g: torch.Generator) -> BackpropSequential:
    torch.manual_seed(0)
    return BackpropSequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, C))


def _frozen(g: torch.Generator) -> SpelaSequential:
    torch.manual_seed(0)
    backbone = Frozen(nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12)))
    return SpelaSequential(backbone, SpelaLinear(12, 5, C, generator=g))


NETWORKS: dict[str, Build] = {
    **{f"objective {name}": _linear(objective=name) for name in OBJECTIVES},
    **{f"activation {name}": _linear("softmax", name) for name in ACTIVATIONS},
    "convolution, a label's objective": _conv("mse"),
    "convolution, softmax": _conv("softmax"),
    "convolution, average pooling": _conv("mse", pool="avg"),
    "blocks": _blocks(),
    "blocks, hidden layer and convolution in the head": _blocks(hidden=6, channels=2, dropout=0.1),
    "frozen backbone": _frozen,
}
OPTIMIZERS: Optimizers = {
    "sgd": lambda net: LocalSGD(net.parameters(), lr=0.1),
    "momentum": lambda net: LocalSGD(
        net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3
    ),
    "adam": lambda net: LocalAdam(net.parameters(), lr=1e-2, weight_decay=1e-3),
}


def _batches(count: int, size: int = B) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(5)
    return [
        (torch.randn(size, 1, 8, 8, generator=g), torch.randint(C, (size,), generator=g))
        for _ in range(count)
    ]


def _rate(step: int) -> float:
    """A cosine schedule: a new number at every step."""
    return 0.1 * (1 + math.cos(step))


class Pair:
    """A network that steps eagerly and its copy that steps by `GraphedStep`, checked to stay the same."""

    def __init__(
        self,
        build: Build,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        device: str = "cpu",
    ) -> None:
        net = build(torch.Generator().manual_seed(1)).to(device)
        self.nets = (net, copy.deepcopy(net))
        self.optimizers = tuple(optimizer(each) for each in self.nets)
        self.graphed = GraphedStep(self.nets[1], self.optimizers[1])
        self.steps = 0

    def step(self, x: Tensor, target: Tensor) -> None:
        self.steps += 1
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = _rate(self.steps)
        torch.manual_seed(self.steps)
        expected = self.nets[0].local_step(x, target, self.optimizers[0])
        torch.manual_seed(self.steps)
        losses = self.graphed(x, target)
        assert losses.isfinite().all()
        assert torch.equal(losses, expected)
        self.check()

    def check(self) -> None:
        mine, theirs = self.nets[1].state_dict(), self.nets[0].state_dict()
        for name, value in theirs.items():
            assert torch.equal(mine[name], value), f"{name}, step {self.steps}"
        for ours, other in zip(self.nets[1].parameters(), self.nets[0].parameters(), strict=True):
            states = self.optimizers[1].state.get(ours, {}), self.optimizers[0].state.get(other, {})
            assert states[0].keys() == states[1].keys()
            for name, value in states[1].items():
                if isinstance(value, Tensor):
                    assert torch.equal(states[0][name], value), f"{name}, step {self.steps}"
        assert all(group["lr"] == _rate(self.steps) for group in self.optimizers[1].param_groups)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_replayed_steps_are_eager_steps_to_the_bit(
    network: str, optimizer: str, recorder: Recorder
) -> None:
    pair = Pair(NETWORKS[network], OPTIMIZERS[optimizer])
    for x, target in _batches(7):
        pair.step(x, target)
    assert len(recorder.tapes) == 1
    assert recorder.replays >= 4


@pytest.mark.parametrize(
    ("build", "optimizer"),
    [
        (_backprop, lambda net: torch.optim.AdamW(net.parameters(), fused=True)),
        (_blocks(similarity=0.5), lambda net: torch.optim.AdamW(net.parameters(), fused=True)),
        (_blocks(projection=None), lambda net: LocalAdam(net.parameters())),
    ],
    ids=["backprop", "similarity", "no projection"],
)
def test_fused_steps_of_torch_are_replayed_to_float32_of_the_rate(
    build: Build, optimizer: Any, recorder: Recorder
) -> None:
    pair = Pair(build, optimizer)
    for x, target in _batches(6):
        for each in pair.optimizers:  # exact in float32, as the training loop's are
            for group in each.param_groups:
                group["lr"] = 2.0 ** -(5 + pair.steps)
        pair.steps += 1
        expected = pair.nets[0].local_step(x, target, pair.optimizers[0])
        assert torch.equal(pair.graphed(x, target), expected)
    for mine, theirs in zip(pair.nets[1].parameters(), pair.nets[0].parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert recorder.replays == 4
    assert not any(group["capturable"] for group in pair.optimizers[1].param_groups)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "network",
    [
        "objective log",
        "activation prelu",
        "convolution, softmax",
        *(n for n in NETWORKS if "blocks" in n),
    ],
)
def test_nothing_that_a_captured_step_makes_outlives_it_but_the_losses(
    network: str, optimizer: str, recorder: Recorder
) -> None:
    """What it makes lies in the graph's pool, where the next replay writes: nobody may keep it."""
    net = NETWORKS[network](torch.Generator().manual_seed(1))
    step = GraphedStep(net, OPTIMIZERS[optimizer](net))
    for x, target in _batches(3):
        step(x, target)
    made = [weakref.ref(tensor) for *_, fresh in recorder.tapes[0].calls for tensor in fresh]
    assert len(made) > 20
    losses = step._graph.losses  # type: ignore[union-attr]
    recorder.tapes[0].calls.clear()
    gc.collect()
    assert [reference() for reference in made if reference() is not None] == [losses]


def _digest(launches: list[Any], static: dict[int, str]) -> list[Any]:
    """Launches as values; tensors by name where they lie for good, else numbered."""
    made: dict[int, int] = {}

    def value(argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        place = argument.data_ptr()
        where = static.get(place) or made.setdefault(place, len(made))
        return where, place if place in static else None, argument.shape, argument.stride()

    return [
        (launch.kernel.__name__, launch.programs, [*map(value, launch.arguments)], launch.options)
        for launch in launches
    ]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_two_successive_steps_make_the_same_launches(
    network: str, optimizer: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from spela_kernels.gpu.architectures import ARCHITECTURES
    from spela_kernels.gpu.launching import record_launches

    net = NETWORKS[network](torch.Generator().manual_seed(1))
    step = GraphedStep(net, OPTIMIZERS[optimizer](net))
    batches = _batches(3)
    # By the reference: a recording leaves what its launches make unwritten. The first step makes the state.
    for batch in batches[: 1 if optimizer == "sgd" else 2]:
        step(*batch)
    digests: list[Any] = []

    def twice(run: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
        for _ in range(2):
            static = {tensor.data_ptr(): name for name, tensor in net.state_dict().items()}
            for index, state in enumerate(step.optimizer.state.values()):
                static |= {v.data_ptr(): f"{name} {index}" for name, v in state.items()}
            rates = [group["lr"] for group in step.optimizer.param_groups]
            static |= {lr.data_ptr(): "lr" for lr in rates}
            with record_launches(ARCHITECTURES["sm_90"]) as recording, Tape():
                losses = run()
            digests.append(_digest(recording.launches, static))
            rates[0].mul_(0.5)
        return lambda: None, losses

    monkeypatch.setitem(graphed._RECORDERS, "cpu", graphed._Recorder(twice, recorder.host_waits))
    monkeypatch.setattr(backend, "_runnable", lambda kind: ("triton", "reference"))
    with use_backend("triton"):
        step(*batches[2])
    assert step.captured
    first, second = digests
    assert len(first) >= 2 * len([m for m in net if isinstance(m, SpelaLinear)])
    assert first == second
    places = [
        argument[0] for launch in first for argument in launch[2] if isinstance(argument, tuple)
    ]
    assert "lr" in places
    assert any(isinstance(place, int) for place in places)


def test_a_number_that_changes_from_step_to_step_would_be_found(recorder: Recorder) -> None:
    """The stand-in holds what Python computed at the capture: a learning rate that is no tensor stays."""

    class Stubborn(LocalSGD):
        def _rule(self, like: Tensor) -> dict[str, Any]:
            return {**super()._rule(like), "lr": torch.tensor(float(self.rate))}

    pair = Pair(_linear(), OPTIMIZERS["sgd"])
    pair.optimizers[1].__class__ = Stubborn
    batches = _batches(3)
    for x, target in batches[:2]:
        pair.optimizers[1].rate = _rate(pair.steps + 1)  # type: ignore[attr-defined]
        pair.step(x, target)
    pair.optimizers[1].rate = _rate(3)  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="step 3"):
        pair.step(*batches[2])


def test_reading_a_value_is_found(recorder: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    pair = Pair(lambda g: SpelaSequential(nn.Flatten(), Reads(), *_linear()(g)), OPTIMIZERS["adam"])
    for x, target in _batches(6):
        pair.step(x, target)
    assert not pair.graphed.captured
    (record,) = caplog.records
    assert "without a CUDA graph: the step reads a value on the host" in record.getMessage()
    with pytest.raises(HostReadError), Tape():
        torch.ones(2).nonzero()


def _train(pair: Pair, count: int, size: int = B) -> None:
    for x, target in _batches(count, size):
        pair.step(x, target)


def test_a_batch_of_another_size_steps_without_the_graph_which_stays(recorder: Recorder) -> None:
    pair = Pair(_linear("softmax", "gelu"), OPTIMIZERS["adam"])
    for _ in range(3):  # epochs, whose last batch is shorter
        _train(pair, 5)
        _train(pair, 1, size=4)
    assert len(recorder.tapes) == 1
    assert recorder.replays == 3 + 5 + 5
    _train(pair, 3, size=4)  # for good
    assert len(recorder.tapes) == 2
    assert recorder.replays == 13 + 3  # the last epoch's was the first of two


def _changes() -> dict[str, Callable[[Pair], None]]:
    def nets(change: Callable[[SpelaSequential], object]) -> Callable[[Pair], None]:
        return lambda pair: [change(net) for net in pair.nets] and None

    def optimizers(change: Callable[[Any], object]) -> Callable[[Pair], None]:
        return lambda pair: [change(optimizer) for optimizer in pair.optimizers] and None

    @torch.no_grad()
    def replace_weight(net: SpelaSequential) -> None:
        net[2].weight.data = 2 * net[2].weight.data

    def swap_vectors(net: SpelaSequential) -> None:
        net[2].vectors = -net[2].vectors

    return {
        "a layer is frozen": nets(lambda net: net[2].requires_grad_(False)),
        "eval mode": nets(lambda net: net.eval()),
        "a module is replaced": nets(lambda net: net.__setitem__(3, nn.Dropout(0.5))),
        "a parameter has other memory": nets(replace_weight),
        "a buffer is another tensor": nets(swap_vectors),
        "the optimizer is restored": optimizers(
            lambda o: o.load_state_dict(copy.deepcopy(o.state_dict()))
        ),
        "another weight decay": optimizers(lambda o: o.param_groups[0].update(weight_decay=0.1)),
        "another decay of moments": optimizers(
            lambda o: o.param_groups[0].update(betas=(0.5, 0.9))
        ),
    }


@pytest.mark.parametrize("what", _changes())
def test_a_change_of_what_was_captured_is_captured_anew(what: str, recorder: Recorder) -> None:
    pair = Pair(_linear("softmax", "gelu"), OPTIMIZERS["adam"])
    _train(pair, 4)
    assert recorder.replays == 2
    _changes()[what](pair)
    _train(pair, 4)
    assert len(recorder.tapes) == 2
    assert recorder.replays == 2 + 3


def test_weights_loaded_in_place_need_no_other_graph(recorder: Recorder) -> None:
    pair = Pair(_linear("softmax", "gelu"), OPTIMIZERS["adam"])
    _train(pair, 4)
    other = _linear("softmax", "gelu")(torch.Generator().manual_seed(9)).state_dict()
    for net in pair.nets:
        net.load_state_dict(other)
    _train(pair, 2)
    assert len(recorder.tapes) == 1
    assert recorder.replays == 4


def test_a_setting_that_changes_at_every_step_is_never_captured(recorder: Recorder) -> None:
    pair = Pair(_linear(), OPTIMIZERS["momentum"])
    for step, (x, target) in enumerate(_batches(6)):
        for optimizer in pair.optimizers:
            optimizer.param_groups[0]["momentum"] = 0.9 - 0.01 * step
        pair.step(x, target)
    assert recorder.tapes == []


def test_autocast_and_the_modes_of_torch(recorder: Recorder) -> None:
    pair = Pair(_linear("softmax", "gelu"), OPTIMIZERS["adam"])
    with torch.autocast("cpu", torch.bfloat16):
        _train(pair, 4)
    _train(pair, 4)  # outside
    assert len(recorder.tapes) == 2
    with torch.inference_mode():
        _train(pair, 1)
    with torch.no_grad():
        _train(pair, 1)
    assert len(recorder.tapes) == 2
    assert recorder.replays == 2 + 3 + 2
    x, target = _batches(1)[0]
    pair.step(x.requires_grad_(), target)
    assert not pair.graphed._graph.x.requires_grad  # type: ignore[union-attr]


def test_groups_tensors_and_schedulers_of_rates(recorder: Recorder) -> None:
    nets = [_linear()(torch.Generator().manual_seed(1)).eval() for _ in range(2)]
    optimizers = [
        LocalAdam(
            [
                {"params": list(net[2].parameters()), "lr": 1e-2},
                {"params": list(net[5].parameters()), "lr": torch.tensor(1e-3)},
            ]
        )
        for net in nets
    ]
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(each, 0.7) for each in optimizers]
    step = GraphedStep(nets[1], optimizers[1])
    for x, target in _batches(7):
        assert torch.equal(step(x, target), nets[0].local_step(x, target, optimizers[0]))
        for scheduler in schedulers:
            scheduler.step()
    for mine, theirs in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert recorder.replays == 5
    assert isinstance(optimizers[1].param_groups[0]["lr"], float)
    optimizers[1].param_groups[0]["lr"] = float("nan")
    with pytest.raises(ValueError, match="must be finite"):
        step(x, target)


def test_losses_are_the_callers_and_autograd_learns_of_the_update(recorder: Recorder) -> None:
    net = _linear()(torch.Generator().manual_seed(1))
    step = GraphedStep(net, OPTIMIZERS["sgd"](net))
    (x, target), (other, _) = _batches(2)
    for _ in range(3):
        losses = step(x, target)
    kept = losses.clone()
    step(other, target)
    assert torch.equal(losses, kept)
    pending = net[2](x.flatten(1)).square().sum() * net[2].weight.square().sum()
    step(x, target)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        pending.backward()


REFUSED: dict[str, tuple[Callable[[Any, Any], object], str]] = {
    "a hook of a module": (
        lambda net, _: net[2].register_forward_hook(lambda *_: None),
        "a module has forward hooks",
    ),
    "a hook of all modules": (
        lambda net, _: nn.modules.module.register_module_forward_hook(lambda *_: None),
        "a module has forward hooks",
    ),
    "a hook of a parameter's gradient": (
        lambda net, _: net[2].weight.register_hook(torch.zeros_like),
        "a gradient has hooks",
    ),
    "a hook behind a parameter's gradient": (
        lambda net, _: net[2].bias.register_post_accumulate_grad_hook(lambda _: None),
        "a gradient has hooks",
    ),
    "a hook of a module's gradient": (
        lambda net, _: net[0].register_full_backward_hook(lambda *_: None),
        "a gradient has hooks",
    ),
    "a hook before a module's gradient": (
        lambda net, _: net[0].register_full_backward_pre_hook(lambda *_: None),
        "a gradient has hooks",
    ),
    "a hook of the optimizer": (
        lambda _, optimizer: optimizer.register_step_post_hook(lambda *_: None),
        "the optimizer has step hooks",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_hooks_go_on_being_called(
    what: str, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    add, message = REFUSED[what]
    pair = Pair(_linear(), OPTIMIZERS["adam"])
    _train(pair, 4)
    assert recorder.replays == 2
    handles: list[Any] = [*map(add, pair.nets, pair.optimizers)]
    try:
        _train(pair, 4)
    finally:
        for handle in handles:
            handle.remove()
    assert recorder.replays == 2
    (record,) = caplog.records
    assert message in record.getMessage()
    _train(pair, 4)
    assert recorder.replays > 2


def test_what_cannot_be_captured_steps_without_a_graph_after_one_message(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.waits = ["model.py:12"]
    pair = Pair(_linear(), OPTIMIZERS["adam"])
    _train(pair, 6)
    assert [r.getMessage() for r in caplog.records] == [
        "spela: training steps run without a CUDA graph: Python waits for the GPU in model.py:12"
    ]
    caplog.clear()
    torchs = Pair(_linear(), lambda net: torch.optim.AdamW(net.parameters()))
    _train(torchs, 4)
    assert "AdamW keeps numbers on the CPU: build it with fused=True" in caplog.text
    assert len(caplog.records) == 1
    assert recorder.tapes == []


def test_a_required_graph(recorder: Recorder) -> None:
    net = _linear()(torch.Generator().manual_seed(1))
    x, target = _batches(1)[0]
    before = copy.deepcopy(net.state_dict())
    step = GraphedStep(net, torch.optim.AdamW(net.parameters()), required=True)
    with pytest.raises(ValueError, match="cannot be a CUDA graph: AdamW keeps numbers"):
        step(x, target)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    step = GraphedStep(net, OPTIMIZERS["adam"](net), required=True)
    for _ in range(4):
        step(x, target)
    assert step.captured
    with pytest.raises(TypeError, match=r"must be .*Module, got list"):
        GraphedStep([net], OPTIMIZERS["adam"](net))  # type: ignore[arg-type]


def test_bad_batches_are_refused_as_ever(recorder: Recorder) -> None:
    net = _linear()(torch.Generator().manual_seed(1))
    optimizer = OPTIMIZERS["adam"](net)
    step = GraphedStep(net, optimizer)
    x, target = _batches(1)[0]
    for _ in range(4):
        step(x, target)
    before = copy.deepcopy(net.state_dict())
    for bad, error in (
        ((x[:, :, :7], target), ValueError),
        ((x, target[:4]), ValueError),
        ((x, target.float()), TypeError),
        ((x.double(), target), TypeError),
        ((x.tolist(), target), TypeError),
    ):
        with pytest.raises(error) as ours:
            step(*bad)
        with pytest.raises(error) as theirs:
            net.local_step(*bad, optimizer)
        assert str(ours.value) == str(theirs.value)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(group["lr"] == 1e-2 for group in optimizer.param_groups)


def test_on_a_cpu_it_is_the_eager_step() -> None:
    pair = Pair(_linear(), OPTIMIZERS["adam"])
    _train(pair, 3)
    assert not pair.graphed.captured
    required = GraphedStep(pair.nets[1], pair.optimizers[1], required=True)
    with pytest.raises(ValueError, match="there are none on cpu"):
        required(*_batches(1)[0])


def test_another_dtype_of_autocast_is_captured_anew(recorder: Recorder) -> None:
    pair = Pair(_linear("softmax", "gelu"), OPTIMIZERS["adam"])
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            _train(pair, 4)
    assert len(recorder.tapes) == 2


@pytest.mark.parametrize(
    ("rows", "columns"),
    [(slice(5, 11), slice(3)), (slice(6), slice(2, 5))],
    ids=["rows", "columns"],
)
def test_a_slice_is_rehearsed_as_it_is_captured(
    rows: slice, columns: slice, recorder: Recorder
) -> None:
    """Triton compiles for strides and for addresses that 16 divides: at a capture it would be too late."""
    seen = []

    class Notes(nn.Module):
        def local_step(self, x: Tensor, target: Tensor, optimizer: Any) -> Tensor:
            seen.append([(t.stride(), t.data_ptr() % 16) for t in (x, target)])
            return x.sum()[None]

    net = Notes()
    net.weight = nn.Parameter(torch.ones(1))
    step = GraphedStep(net, OPTIMIZERS["sgd"](net))
    x, target = torch.randn(11, 5)[rows, columns], torch.zeros(11, dtype=torch.int64)[rows]
    for _ in range(2):
        step(x, target)
    assert step.captured
    rehearsed, captured = seen
    assert rehearsed == captured
    assert captured[0] != (x.stride(), x.data_ptr() % 16)
