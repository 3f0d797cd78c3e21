"""The house stands: rooms import one way, and no files import one another in a circle."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALL = ("models", "codecs", "objectives", "generation", "stored", "live", "interop", "training", "checkpoints",
       "evaluation", "search", "bench", "commands", "inference")  # fmt: skip
ABOVE_MODELS = ("objectives", "generation", "stored", "live", "interop", "training", "checkpoints", "evaluation",
                "search", "inference")  # fmt: skip
# Modules (beginnings of their names) that a room may not import. `commands` and `train` may import all.
CLOSED: dict[str, tuple[str, ...]] = {
    "data_pipelines": ("xmodal", "configs", "train"),
    "xmodal.models": tuple(f"xmodal.{room}" for room in ABOVE_MODELS),
    "xmodal.objectives": tuple(f"xmodal.{room}" for room in ABOVE_MODELS if room != "objectives"),
    "xmodal.distributed": tuple(f"xmodal.{room}" for room in ALL),
    "xmodal.checkpoints": ("xmodal.training", "xmodal.evaluation", "xmodal.stored", "xmodal.live", "xmodal.models"),
    "xmodal.building": ("xmodal.training", "xmodal.evaluation", "xmodal.stored", "xmodal.live", "xmodal.interop"),
    "xmodal.stored": ("xmodal.training", "xmodal.evaluation", "xmodal.live", "xmodal.inference", "xmodal.search"),
    "xmodal.live": ("xmodal.training", "xmodal.evaluation", "xmodal.inference", "xmodal.interop", "xmodal.search"),
    "xmodal.evaluation": ("xmodal.training", "xmodal.inference", "xmodal.interop", "xmodal.search"),
    "xmodal.inference": ("xmodal.training", "xmodal.search"),
    "xmodal.interop": ("xmodal.training", "xmodal.search"),
    "xmodal.search": ("xmodal.training",),
    "xmodal.reporting": ("xmodal.training", "xmodal.evaluation", "xmodal.search", "xmodal.stored", "xmodal.live"),
    "xmodal.training": ("xmodal.search", "xmodal.inference"),
    "xmodal": ("xmodal.commands", "xmodal.bench", "train"),
}
# Rooms that the last line does not bind, and those that may import `xmodal.bench`.
OPEN = ("xmodal.commands", "xmodal.bench", "xmodal.__main__")


def imports() -> dict[str, set[str]]:
    """{module: modules of this repository that it imports}, those in functions and under TYPE_CHECKING, too."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split() if not name.startswith("tests/") and (ROOT / name).is_file()]
    modules = {module_of(path.relative_to(ROOT).as_posix()): path for path in files}
    return {module: imported(path.read_text("utf-8"), module, modules) for module, path in modules.items()}


def module_of(name: str) -> str:
    return re.sub(r"(/__init__)?\.py$", "", name).replace("/", ".")


def imported(source: str, module: str, modules) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports are absolute"
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else node.module for name in below]
        else:
            continue
        found |= {name for name in names if name in modules and name != module}
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The sets of modules that import one another (Tarjan's strongly connected components of two or more)."""
    index, low, stack, found = {}, {}, [], []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            circle = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(circle) > 1:
                found.append(sorted(circle))

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, 10_000))
    try:
        for module in graph:
            if module not in index:
                visit(module)
    finally:
        sys.setrecursionlimit(limit)
    return found


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def arrows_up(graph: dict[str, set[str]]) -> list[str]:
    """One line for each import that a room may not make."""
    return [
        f"{module} -> {other}"
        for room, closed in CLOSED.items()
        for module in graph
        if within(module, room) and not (room == "xmodal" and any(within(module, free) for free in OPEN))
        for other in sorted(graph[module])
        if any(within(other, forbidden) for forbidden in closed)
    ]


@pytest.fixture(scope="module")
def graph():
    return imports()


def test_no_files_import_one_another_in_a_circle(graph):
    # A package's own lines, such as a version, are there before its modules are read.
    inner = {module: others - {"xmodal"} for module, others in graph.items()}
    assert circles(inner) == []


def test_rooms_import_one_way(graph):
    assert arrows_up(graph) == []
    assert len(graph) > 200, "the files were found"


def test_what_the_test_would_say():
    made = {
        "xmodal.models.a": {"xmodal.training.b"},
        "xmodal.training.b": {"xmodal.models.a"},
        "data_pipelines.c": set(),
    }
    assert circles(made) == [["xmodal.models.a", "xmodal.training.b"]]
    assert arrows_up(made) == ["xmodal.models.a -> xmodal.training.b"]
    modules = {"xmodal.live", "xmodal.models.model"}
    source = "def f():\n    from xmodal.models import model\n\nif TYPE_CHECKING:\n    from xmodal.live import Live\n"
    assert imported(source, "xmodal.x", modules) == {"xmodal.live", "xmodal.models.model"}
