"""The compiler report: the kernels pass it on every GPU, and kernels that should not pass do not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, product
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton import knobs
from triton.runtime import driver, jit

if not hasattr(jit.JITFunction, "_pack_args"):
    pytest.skip(f"Triton {triton.__version__} is older than 3.6", allow_module_level=True)

from spela_kernels.aot import __main__ as command
from spela_kernels.aot import jobs as planning
from spela_kernels.aot.cases import Case, dtypes, shaped, variants
from spela_kernels.aot.compile import compile_job
from spela_kernels.aot.jobs import Job, gpu_target, plan, specialise
from spela_kernels.aot.occupancy import MULTIPROCESSORS
from spela_kernels.aot.report import failures
from spela_kernels.aot.resources import amd_resources, nvidia_resources
from spela_kernels.contracts import Settings
from spela_kernels.gpu.architectures import ARCHITECTURES, Architecture
from spela_kernels.gpu.launching import Launch, record_launches, run
from spela_kernels.linear import triton_backend
from spela_kernels.linear.types import Call, Parameters
from spela_kernels.rules import AdamRule, SgdRule, Step

ROOT = Path(__file__).resolve().parents[3]


@triton.jit
def product_kernel(x_ptr, y_ptr, size, PRECISION: tl.constexpr, BLOCK: tl.constexpr):
    """X X^T of one (BLOCK, BLOCK) tile."""
    offs = tl.arange(0, BLOCK)[:, None] * size + tl.arange(0, BLOCK)[None, :]
    x = tl.load(x_ptr + offs)
    tl.store(y_ptr + offs, tl.dot(x, tl.trans(x), input_precision=PRECISION))


def product_job(target: str, precision: str = "ieee", block: int = 32, **options: int) -> Job:
    x = shaped(block, block)
    options = {"num_warps": 4, "num_stages": 1} | options
    launch = Launch(product_kernel, 1, (x, x, block, precision, block), options)
    return specialise(launch, target, "a product")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    path = tmp_path_factory.mktemp("aot") / "report.json"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "spela_kernels.aot", "--json", str(path)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(path.read_text(encoding="utf-8"))


def test_no_kernel_spills_on_any_gpu(report: dict) -> None:
    assert report["failures"] == []
    for row in report["rows"]:
        found = row["resources"]
        spilled = (found["spill_stores"], found["spill_loads"], found["stack"])
        assert spilled == (0, 0, 0), row
        assert 0 < found["registers"] <= 512, row
        assert 0 <= row["shared"] <= ARCHITECTURES[row["target"]].shared_bytes, row
        assert row["warps"] >= row["num_warps"], row


def test_every_kernel_is_built_for_every_gpu(report: dict) -> None:
    kernels = {
        "linear": ("forward_kernel", "finalise_kernel", "update_kernel"),
        "projection": ("forward_kernel", "classes_kernel", "gradient_kernel", "update_kernel"),
    }
    built = {(row["target"], row["label"].split()[0], row["kernel"]) for row in report["rows"]}
    for target, (op, names) in product(ARCHITECTURES, kernels.items()):
        assert built >= {(target, op, name) for name in names}


def test_products_run_on_matrix_units(report: dict) -> None:
    for row in report["rows"]:
        count = sum(row["resources"]["matrix"].values())
        if row["kernel"] in ("forward_kernel", "update_kernel"):
            assert row["products"] >= 1, row
        if row["target"] == "sm_75":  # Triton has none there
            assert count == 0, row
        else:
            assert (count > 0) == (row["products"] > 0), row
        if "float32" in row["label"] and row["target"].startswith("sm_") and count:
            # UTCHMMA, of large tiles on Blackwell, has its kind (tf32) in a descriptor, not in its name.
            names = set(row["resources"]["matrix"])
            known = {"UTCHMMA"} if row["target"] == "sm_100" else set()
            assert all("TF32" in name for name in names - known), row
        if "softmax" in row["label"] and row["kernel"] == "forward_kernel":
            # x W^T and y V^T; z P and, for matrix units, p U^T
            assert row["products"] == 2 - (
                "projection" in row["label"] and row["target"] == "sm_75"
            )


@pytest.mark.parametrize(
    ("kernel", "case"),
    [
        ("update_kernel", "adam 512x1024x1024x10 float16 mixed log leaky_relu"),
        ("finalise_kernel", "sgd 100x1001x130x100 float16 log prelu"),
    ],
)
def test_the_hungriest_kernels_do_not_spill(kernel: str, case: str) -> None:
    # With 32 elements of the tile a thread instead of 16 both do, on Hopper.
    jobs = plan(("sm_90",), everything=True, kernels=(kernel,), cases=case)
    assert jobs
    assert [failures(compile_job(job)) for job in jobs] == [[]] * len(jobs)


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_120"])
def test_spilled_bytes_are_those_ptxas_counts(
    target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(knobs.compilation, "always_compile", True)
    monkeypatch.setattr(knobs.nvidia, "dump_ptxas_log", True)
    row = compile_job(product_job(target, num_warps=1, maxnreg=40))
    said = capsys.readouterr().out
    counted = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert counted is not None, said
    assert row.resources is not None
    assert row.resources.spill_stores > 0
    assert row.resources.spill_stores == int(counted[1])
    assert row.resources.spill_loads == int(counted[2])
    assert any("spills" in what for what in failures(row))


def test_amd_spills_are_found() -> None:
    row = compile_job(product_job("gfx942", block=128, num_warps=1))
    assert row.resources is not None
    assert row.resources.spill_stores > 0
    assert any("spills" in what for what in failures(row))


def test_amd_scalar_spills_cost_no_memory_and_scratch_fails() -> None:
    fields = {
        "vgpr_count": 64, "vgpr_spill_count": 0, "sgpr_spill_count": 9,
        "private_segment_fixed_size": 0, "group_segment_fixed_size": 0,
    }  # fmt: skip
    row = compile_job(product_job("gfx942"))
    wrong = []
    for scratch in (0, 16):
        fields["private_segment_fixed_size"] = scratch
        said = "\n".join(f".{name}: {count}" for name, count in fields.items())
        wrong.append(failures(replace(row, resources=amd_resources(said + "\nv_mfma_f32_x"))))
    assert wrong == [[], ["keeps 16 bytes a thread on the stack"]]


@pytest.mark.parametrize(
    ("target", "precision", "wrong"),
    [
        ("sm_80", "ieee", ["has a matrix product but no matrix instruction"]),
        ("sm_80", "tf32x3", []),
        ("sm_75", "ieee", []),  # no matrix units to miss
        ("gfx90a", "ieee", []),
    ],
)
def test_a_product_outside_matrix_units_fails(
    target: str, precision: str, wrong: list[str]
) -> None:
    row = compile_job(product_job(target, precision))
    assert row.products == 1
    assert failures(row) == wrong


def test_half2_fma_is_no_matrix_instruction() -> None:
    code = "HFMA2.MMA R2, -RZ, RZ, 0, 0 ;\n@!P0 HMMA.16816.F32 R4, R8, R2, R4 ;\nUTCHMMA gdesc[UR4]"
    found = nvidia_resources("REG:1 STACK:0 SHARED:0", code)
    assert found.matrix == {"HMMA.16816.F32": 1, "UTCHMMA": 1}


def test_limits_and_broken_kernels_fail() -> None:
    row = compile_job(product_job("sm_86", "tf32x3"))
    assert failures(row) == []
    assert "limit 101376" in failures(replace(row, shared=101_377))[0]
    assert "do not fit" in failures(replace(row, warps=0))[0]
    assert "1 of its matrix products" in failures(replace(row, fma_products=1))[0]
    broken = compile_job(product_job("sm_80", block=48))  # arange wants a power of two
    assert "does not compile" in failures(broken)[0]


@pytest.mark.parametrize(
    ("target", "num_warps", "registers", "shared", "warps"),
    [
        ("sm_80", 4, 255, 0, 8),  # 65,536 / (256 * 32) = 8 warps
        ("sm_80", 4, 16, 100_000, 4),  # one program in 164 KiB
        ("sm_90", 8, 256, 0, 8),
        ("sm_90", 16, 255, 0, 0),  # more registers than there are
        ("sm_75", 4, 16, 0, 32),
        ("gfx942", 4, 129, 0, 12),  # 512 / 136 = 3 waves on each of 4 SIMDs
    ],
)
def test_occupancy(target: str, num_warps: int, registers: int, shared: int, warps: int) -> None:
    found = MULTIPROCESSORS[target].warps_at_once(num_warps, registers, shared)
    assert found == warps
    assert set(MULTIPROCESSORS) == set(ARCHITECTURES)


class _Driver:
    """As much of a GPU's driver as Triton's launcher asks before it compiles."""

    def __init__(self, target: str) -> None:
        self.target = gpu_target(target)

    def get_current_target(self) -> object:
        return self.target

    def get_current_device(self) -> str:
        return f"imagined {self.target.arch}"

    def get_current_stream(self, device: object) -> int:
        return 0


@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
def test_jobs_are_what_tritons_launcher_compiles(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def caught(*, compile: dict, **_: object) -> bool:
        seen.append(compile)
        return True  # do not compile

    with record_launches(ARCHITECTURES[target]) as recording:
        for case in chain(*(op(ARCHITECTURES[target], False) for op in planning.CASE_GENERATORS)):
            case.call()
    monkeypatch.setattr(knobs.runtime, "jit_cache_hook", caught)
    monkeypatch.setattr(driver, "_active", _Driver(target))
    for launch in recording.launches:
        grid = (launch.programs,)
        launch.kernel.run(*launch.arguments, grid=grid, warmup=True, **launch.options)
        job, compiled = specialise(launch, target, ""), seen[-1]
        assert job.signature == compiled["signature"]
        assert job.constants == compiled["constants"]
        assert job.hints == compiled["configs"][0]
        for name in ("num_warps", "num_stages", "enable_fp_fusion"):
            assert job.options[name] == compiled[name]
    assert len(seen) == len(recording.launches)


def test_equal_programs_are_compiled_once_and_unaligned_ones_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.empty(33, 32, device="meta")

    def op(arch: Architecture, everything: bool) -> Iterator[Case]:
        for label, rows in (("whole", x[:32]), ("again", x[:32]), ("aligned", x[1:])):
            arguments = (rows, rows, 32, "ieee", 32)
            yield Case(
                label, lambda arguments=arguments: run(arch, product_kernel, 1, arguments, 4)
            )
        late = x.flatten()[1:1025].view(32, 32)
        yield Case("late", lambda: run(arch, product_kernel, 1, (late, x, 32, "ieee", 32), 4))

    monkeypatch.setattr(planning, "CASE_GENERATORS", (op,))
    assert [job.label for job in plan(("sm_80",))] == ["whole", "late"]
    assert [job.label for job in plan(("sm_80",), cases="again")] == ["again"]


def test_a_schedule_of_a_rules_numbers_compiles_nothing_anew() -> None:
    # OneCycleLR moves the momentum, or beta1, at every step.
    params = Parameters(shaped(64, 32), None, None)
    call = Call(shaped(50, 32), params, shaped(10, 64), shaped(50, dtype=torch.int64), Settings())
    state, none = (Parameters(shaped(64, 32), None, None), Parameters(None, None, None))
    rules = (
        (SgdRule(0.9, 0.1, True), SgdRule(0.85, 0.2, True)),
        (AdamRule(), AdamRule(0.95, 0.99, 1e-7)),
        (SgdRule(0.9), SgdRule(0.9, 0.1)),  # without decay the weight has no part in its gradient
    )
    programs = []
    for pair in rules:
        found = []
        for rule in pair:
            second = state if isinstance(rule, AdamRule) else none
            with record_launches(ARCHITECTURES["sm_80"]) as recording:
                triton_backend.step_(call, Step(rule, shaped(), state, second, shaped()))
            found.append(
                {specialise(launch, "sm_80", "").identity for launch in recording.launches}
            )
        programs.append(found[0] == found[1])
    assert programs == [True, True, False]


def test_everything_meets_each_rule_in_each_dtype_and_in_every_smaller_tile() -> None:
    for arch in ARCHITECTURES.values():
        found = set(variants(arch, ["scores", "gradient", "nesterov", "adam"]))
        assert {(v.dtype, v.rule) for v in found if v.fallbacks == 0 and not v.mixed} == set(
            product(dtypes(arch), ["scores", "gradient", "nesterov", "adam"])
        )
        assert {v.fallbacks for v in found if v.rule == "adam"} == {0, 1, 2}
        assert {v.rule for v in found if v.mixed} == {"scores", "gradient", "nesterov", "adam"}


def test_fallback_tiles_are_planned() -> None:
    params = Parameters(shaped(1024, 1024), None, None)
    call = Call(shaped(512, 1024), params, shaped(10, 1024), None, Settings())
    blocks = []
    for fallbacks in range(3):
        with record_launches(ARCHITECTURES["sm_80"], fallbacks) as recording:
            triton_backend.scores(call)
        blocks.append(recording.launches[0].arguments[-4:-1])
    assert len(set(blocks)) == 3


def test_the_command_fails_loudly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def op(arch: Architecture, everything: bool) -> Iterator[Case]:
        x = shaped(32, 32)
        yield Case("slow", lambda: run(arch, product_kernel, 1, (x, x, 32, "ieee", 32), 4))

    monkeypatch.setattr(planning, "CASE_GENERATORS", (op,))
    monkeypatch.setattr(command, "_compiled", lambda jobs, _: [compile_job(job) for job in jobs])
    path = tmp_path / "report.json"
    assert command.main(["--targets", "sm_80,sm_75", "--json", str(path)]) == 1
    said = capsys.readouterr()
    expected = "product_kernel on sm_80 has a matrix product but no matrix instruction"
    assert f"FAILED: {expected} (slow, 4 warps)" in said.err
    assert "2 programs for 2 targets" in said.out
    assert "1 failures" in said.out
    assert len(json.loads(path.read_text(encoding="utf-8"))["failures"]) == 1
    assert command.main(["--targets", "sm_75"]) == 0


def test_a_reader_who_leaves_early_ends_it_quietly() -> None:
    few = ("--targets", "sm_80", "--kernels", "classes_kernel", "--jobs", "1")
    with subprocess.Popen(
        [sys.executable, "-m", "spela_kernels.aot", *few],
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline().startswith("target")
        running.stdout.close()
        said = running.stderr.read()
    assert (running.returncode, said) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--targets", "sm_13"], "unknown target sm_13: use sm_75"),
        (["--targets", "sm_80", "--kernels", "nothing"], "unknown kernel nothing: use classes"),
        (["--targets", "sm_80", "--cases", "nothing"], "no case has 'nothing'"),
        (["--targets", "sm_80", "--jobs", "0"], "--jobs must be in 1.."),
        (["--targets", "sm_80", "--jobs", "100000"], "got 100000"),
    ],
)
def test_wrong_requests_are_explained(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_report_that_could_not_be_written_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--targets", "sm_80", "--json", str(tmp_path / "no" / "report.json")]) == 2
    assert "does not exist" in capsys.readouterr().err
