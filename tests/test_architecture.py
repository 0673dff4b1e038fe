"""What may depend on what; read from the source, so that nothing need be imported."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("conf", "common", "client", "server")
SOURCES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in SOURCES}


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported, at the top or inside of a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield node.module


def importers(*packages: str, below: tuple[str, ...]) -> list[str]:
    """Files below some folders that import any of the packages."""
    return [
        name
        for name, tree in TREES.items()
        if name.startswith(below)
        and any(module.split(".")[0] in packages for module in imports(tree))
    ]


def test_the_sources_are_found() -> None:
    assert {"client/app.py", "server/app.py", "common/data/formats/npz.py"} <= set(TREES)


@pytest.mark.parametrize(
    ("folder", "others"),
    [
        ("conf/", ("common", "client", "server")),
        ("common/", ("client", "server")),
        ("client/", ("server",)),
    ],
)
def test_imports_go_one_way(folder: str, others: tuple[str, ...]) -> None:
    assert importers(*others, below=(folder,)) == []


def test_the_server_knows_clients_only_to_run_them_itself() -> None:
    runners = {f"server/runtimes/{name}.py" for name in ("local", "simulation")}
    found = set(importers("client", below=("server/",)))
    assert runners <= found
    assert all(name.startswith("server/baselines/") for name in found - runners)


def test_mathematics_knows_no_framework() -> None:
    frameworks = ("flwr", "hydra", "omegaconf", "ray")
    pure = ("common/model/", "common/data/", "server/aggregation/")
    assert importers(*frameworks, below=pure) == []


def test_only_the_simulation_needs_the_simulator() -> None:
    modules = {name: list(imports(tree)) for name, tree in TREES.items()}
    users = [
        name
        for name, found in modules.items()
        if any(module.startswith(("ray", "flwr.simulation")) for module in found)
    ]
    assert users == ["server/runtimes/simulation.py"]


RECORDS = {"ArrayRecord", "ConfigRecord", "MetricRecord", "RecordDict"}


def record_makers(tree: ast.Module) -> set[str]:
    """Functions of a module that make a record."""
    return {
        getattr(function, "name", "module")
        for function in tree.body
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", getattr(node.func, "attr", None)) in RECORDS
    }


def test_record_keys_live_in_the_protocol() -> None:
    makers = {name: record_makers(tree) for name, tree in TREES.items() if record_makers(tree)}
    assert makers.pop("common/protocol.py")
    # A node's Context holds a record, empty here.
    assert makers == {
        "server/run/federation.py": {"Federation"},
        "server/strategy.py": {"HierarchicalAggregation"},
        "server/runtimes/local.py": {"LocalGrid"},
    }


def test_files_are_short() -> None:
    lengths = {name: len((ROOT / name).read_text().splitlines()) for name in TREES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_every_file_says_what_it_is_for() -> None:
    assert [name for name, tree in TREES.items() if not ast.get_docstring(tree)] == []


def module_file(module: str) -> str | None:
    """The source file of one of our modules."""
    path = module.replace(".", "/")
    return next((name for name in (f"{path}.py", f"{path}/__init__.py") if name in TREES), None)


def file_graph() -> dict[str, set[str]]:
    """File to the files that it imports."""
    graph: dict[str, set[str]] = {}
    for name, tree in TREES.items():
        modules = set(imports(tree)) | {
            f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        graph[name] = {found for module in modules if (found := module_file(module))} - {name}
    return graph


def room(name: str) -> str:
    """The folder of a file below a package; a file directly in the package is a room of its own."""
    return "/".join(name.split("/")[:2])


def test_no_import_circle_between_files() -> None:
    assert list(TopologicalSorter(file_graph()).static_order())


def test_no_import_circle_between_rooms() -> None:
    rooms: dict[str, set[str]] = {}
    for name, imported in file_graph().items():
        rooms.setdefault(room(name), set()).update(map(room, imported))
    assert {"server/run", "server/strategy.py", "common/data"} <= set(rooms)
    order = TopologicalSorter({name: others - {name} for name, others in rooms.items()})
    assert list(order.static_order())  # a circle raises CycleError, which names its rooms


# Under flower-supernode each message starts a process, so an import costs at every round.
HEAVY = (
    *("sklearn", "scipy", "matplotlib", "pandas", "ray"),
    *("tensorboard", "mlflow", "onnx", "onnxscript", "onnxruntime"),
    *("av", "tokenizers", "transformers", "wordllama"),
)


@pytest.mark.parametrize(
    ("module", "others"), [("client.app", ("server",)), ("server.service.app", ("client", "flwr"))]
)
def test_a_client_and_the_service_start_light(module: str, others: tuple[str, ...]) -> None:
    heavy = {*HEAVY, *others}
    script = f"import {module}, sys; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
