"""Every file is in a room of CONTRIBUTING's table; rooms import downwards only, without a cycle or a star."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("spela_kernels", "spela")

# Loose files on the top floors, `__init__.py` and the like among them.
MOST_LOOSE = {"spela_kernels": 12, "spela": 9}


def _rooms() -> list[tuple[str, ...]]:
    """The folders and files of each row of CONTRIBUTING's table, lowest first."""
    rooms = []
    for line in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines():
        if not line.startswith("| `"):
            continue
        names = re.findall(r"`([^`]+)`", line.split("|")[1])
        folder = names[0].rpartition("/")[0]  # of those that are named without one
        rooms.append(tuple(n if "/" in n or n == names[0] else f"{folder}/{n}" for n in names))
    return rooms


ROOMS = _rooms()
# The packages' front doors re-export what lies below them; `python -m spela` opens the top.
FRONT = {"spela", "spela_kernels", "spela.__main__"}


def _modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(name: str) -> set[str]:
    """Modules of this project that `name` imports, wherever in the file."""
    targets = set()
    for node in ast.walk(_tree(MODULES[name])):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{name}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                targets.add(full if full in MODULES else node.module)
    return {target for target in targets if target in MODULES}


def _row(name: str) -> int:
    """The row of CONTRIBUTING's table that a module is in."""
    path = MODULES[name].relative_to(ROOT).as_posix()
    for row, places in enumerate(ROOMS):
        if any(path == place or path.startswith(place + "/") for place in places):
            return row
    raise AssertionError(f"{path} is in no room of CONTRIBUTING's table: move it, or give it a row")


@pytest.mark.parametrize("name", sorted(set(MODULES) - FRONT))
def test_imports_flow_downwards(name: str) -> None:
    upward = {t for t in _imports(name) - FRONT if _row(t) > _row(name)}
    assert not upward, f"{name} imports upwards: {', '.join(sorted(upward))}"
    if _row(name) < _row("spela.cli"):
        assert "spela" not in _imports(name), f"{name} imports the package's front door"


def test_every_room_is_there_and_none_is_in_another() -> None:
    places = [place for room in ROOMS for place in room]
    assert len(places) == len(set(places)) > 20
    for place in places:
        assert (ROOT / place).exists(), f"CONTRIBUTING's table names {place}, which is not there"
        inside = [other for other in places if other.startswith(place + "/")]
        assert not inside, f"{', '.join(inside)}: already in the room {place}"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_top_floors_stay_clear(package: str) -> None:
    loose = sorted(path.name for path in (ROOT / package).iterdir() if path.is_file())
    loose = [name for name in loose if not name.endswith((".so", ".pyd"))]
    assert len(loose) <= MOST_LOOSE[package], f"too many loose files in {package}: {loose}"


def test_no_cycles() -> None:
    # A package imports its modules; that a module's import first runs its package is Python's business.
    graph = {
        name: {t for t in _imports(name) if not name.startswith(t + ".")} - {name}
        for name in MODULES
    }
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_public_names_are_declared(name: str) -> None:
    tree = _tree(MODULES[name])
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), f"{name}: star import"
    declared = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
    ]
    assert declared, f"{name} has no __all__"
    exported = set(ast.literal_eval(declared[0]))
    defined = {
        n.name
        for n in tree.body
        if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")
    }
    missing = defined - exported
    assert not missing, f"{name}: public but not in __all__: {', '.join(sorted(missing))}"
    bound = defined | {
        alias.asname or alias.name
        for node in ast.walk(tree)  # a front door may import a name on first use
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    bound |= {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    assert exported <= bound, f"{name}: in __all__ but not defined: {', '.join(exported - bound)}"


def _packages(path: Path) -> set[str]:
    """What a file imports, by its first name."""
    found = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize(
    "name",
    [
        *("gpu.architectures", "gpu.tiles", "cost.roofline", "cost.traffic"),
        *("linear.configs", "linear.cost", "projection.configs", "projection.cost"),
    ],
)
def test_tiles_and_costs_need_neither_torch_nor_triton(name: str) -> None:
    assert not _packages(MODULES[f"spela_kernels.{name}"]) & {"torch", "triton"}


def test_spela_never_imports_triton_and_only_the_cli_prints() -> None:
    for name, path in MODULES.items():
        roots = _packages(path)
        for node in ast.walk(_tree(path)):
            speaks = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if speaks and not name.startswith(MAY_PRINT):
                assert node.func.id not in ("print", "exit", "quit"), f"{name} prints or exits"
        if name.startswith("spela.") or name == "spela":
            assert "triton" not in roots, f"{name} imports triton"
        assert not roots & {"pickle", "dill", "joblib"}, f"{name} imports a pickler"


# Commands: each prints its own report.
MAY_PRINT = ("spela.cli", "spela_kernels.aot.__main__", "spela_kernels.selftest")
