"""Which folder may import which: read off the syntax trees, and off what a fresh interpreter has loaded."""

import ast
import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "noetherflow": "noetherflow",
    "symbolic": "noetherflow.symbolic",
    "numeric": "noetherflow.numeric",
    "bridge": "noetherflow.bridge",
}
# Modules of the face that everything may use; they import nothing above themselves.
FOUNDATION = {"noetherflow.errors", "noetherflow.sources"}
# What each layer may import of noetherflow, by the first part that matters. The face may import everything.
ALLOWED = {
    "noetherflow.symbolic": {"noetherflow.symbolic"},
    "noetherflow.numeric": {"noetherflow.numeric"},
    "noetherflow.bridge": {"noetherflow.bridge", "noetherflow.symbolic", "noetherflow.numeric"},
}
FORBIDDEN_OUTSIDE = {"noetherflow.symbolic": {"torch"}, "noetherflow.numeric": {"sympy"}}


@dataclass(frozen=True, slots=True)
class Import:
    """One import statement: the modules it names, and where it stands."""

    targets: tuple[str, ...]
    line: int
    relative: bool
    in_function: bool
    for_types_only: bool


@cache
def modules() -> dict[str, Path]:
    """Every module of the tree by its installed name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).glob("*.py")):
            found[package if path.stem == "__init__" else f"{package}.{path.stem}"] = path
    return found


def imports_of(source: str) -> list[Import]:
    """All imports in a source text, wherever they are nested."""
    found: list[Import] = []
    _collect(ast.parse(source), found, in_function=False, for_types_only=False)
    return found


def _collect(node: ast.AST, found: list[Import], in_function: bool, for_types_only: bool) -> None:
    if isinstance(node, ast.Import):
        found.append(Import(tuple(alias.name for alias in node.names), node.lineno, False, in_function, for_types_only))
    elif isinstance(node, ast.ImportFrom):
        targets = tuple(f"{node.module}.{alias.name}" for alias in node.names)
        found.append(Import(targets, node.lineno, node.level > 0, in_function, for_types_only))
    inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        for_types = for_types_only or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and child in node.body)
        _collect(child, found, inside, for_types)


def layer_of(name: str) -> str:
    """The folder of a module, by its package."""
    return next((package for package in ALLOWED if name == package or name.startswith(f"{package}.")), "noetherflow")


def module_behind(target: str) -> str | None:
    """The module of the tree that an imported name belongs to: the name itself, or what it is an attribute of."""
    known = modules()
    if target in known:
        return target
    return target.rpartition(".")[0] if target.rpartition(".")[0] in known else None


def violations(name: str, source: str) -> list[str]:
    """Every broken rule in one module's source, in words."""
    broken = []
    for statement in imports_of(source):
        where = f"{name}:{statement.line}"
        if statement.relative:
            broken.append(f"{where} imports relatively")
        if statement.in_function:
            broken.append(f"{where} imports inside a function")
        broken += [f"{where} {problem}" for target in statement.targets for problem in _target_problems(name, target)]
    return broken


def _target_problems(name: str, target: str) -> list[str]:
    layer, top = layer_of(name), target.split(".")[0]
    if top in ("symbolic", "numeric", "bridge"):
        return [f"imports a bare {top}"]
    if top in FORBIDDEN_OUTSIDE.get(layer, set()):
        return [f"imports {top}, which {layer} must not see"]
    behind = module_behind(target)
    if name in FOUNDATION:
        return [f"imports {target}, above itself"] if top == "noetherflow" and behind not in FOUNDATION | {"noetherflow"} else []
    if layer in ALLOWED and top == "noetherflow" and behind not in FOUNDATION and layer_of(target) not in ALLOWED[layer]:
        return [f"imports {target}, which {layer} must not see"]
    return []


@pytest.mark.parametrize("name", list(modules()))
def test_imports_of_a_module_go_the_right_way(name: str) -> None:
    assert violations(name, modules()[name].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("noetherflow.symbolic.graph", "import torch"),
        ("noetherflow.symbolic.graph", "from torch import nn"),
        ("noetherflow.symbolic.graph", "from noetherflow.numeric import data"),
        ("noetherflow.symbolic.graph", "import noetherflow.bridge.trace"),
        ("noetherflow.symbolic.graph", "import noetherflow"),
        ("noetherflow.numeric.data", "import sympy"),
        ("noetherflow.numeric.data", "from noetherflow import symbolic"),
        ("noetherflow.numeric.data", "from numeric import models"),
        ("noetherflow.numeric.data", "from . import models"),
        ("noetherflow.numeric.data", "def f():\n    import torch"),
        ("noetherflow.numeric.data", "class C:\n    def f(self):\n        from torch import nn"),
        ("noetherflow.bridge.trace", "from noetherflow import trace"),
        ("noetherflow.errors", "from noetherflow.numeric import data"),
    ],
)
def test_each_broken_rule_is_seen(name: str, source: str) -> None:
    assert violations(name, source)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("noetherflow.symbolic.graph", "import sympy\nfrom noetherflow.errors import GraphError"),
        ("noetherflow.numeric.data", "import torch\nfrom noetherflow.numeric.images import ImageSet"),
        ("noetherflow.bridge.trace", "import torch, sympy\nfrom noetherflow.symbolic import graph\nfrom noetherflow.numeric import data"),
        ("noetherflow.cli", "from noetherflow.bridge import trace"),
        ("noetherflow.sources", "from noetherflow.errors import SourceError"),
    ],
)
def test_what_is_allowed_is_not_reported(name: str, source: str) -> None:
    assert violations(name, source) == []


def import_graph(sources: dict[str, str]) -> "nx.DiGraph[str]":
    """Edges from a module to each module of the tree it imports when it runs; what only type checkers see does not count."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    for name, source in sources.items():
        for statement in imports_of(source):
            behind = {module_behind(target) for target in statement.targets if not statement.for_types_only}
            graph.add_edges_from((name, other) for other in behind if other and other != name)
    return graph


def test_no_import_cycle() -> None:
    graph = import_graph({name: path.read_text(encoding="utf-8") for name, path in modules().items()})
    assert list(nx.simple_cycles(graph)) == []


def test_a_cycle_is_seen() -> None:
    face, errors = "from noetherflow.errors import GraphError", "import noetherflow"
    assert list(nx.simple_cycles(import_graph({"noetherflow": face, "noetherflow.errors": errors})))


def loaded_after(*statements: str) -> set[str]:
    """Names in sys.modules of a fresh interpreter after it has run the statements."""
    program = "\n".join(["import json, sys", *statements, "print(json.dumps(list(sys.modules)))"])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(done.stdout.splitlines()[-1]))


def imports_of_folder(package: str) -> list[str]:
    return [f"import {name}" for name in modules() if layer_of(name) == package]


def test_the_front_door_loads_neither_torch_nor_sympy() -> None:
    assert {"torch", "sympy"}.isdisjoint(loaded_after("import noetherflow", "dir(noetherflow)"))


def test_symbolic_loads_without_torch() -> None:
    loaded = loaded_after(*imports_of_folder("noetherflow.symbolic"))
    assert "torch" not in loaded
    assert not any(name.startswith(("noetherflow.numeric", "noetherflow.bridge")) for name in loaded)


def test_numeric_loads_without_sympy() -> None:
    # torch 2.13 imports SymPy only on some calls (the first optimizer that is made, torch.compile), not when torch, torch.nn, torch.func or
    # torch.optim are imported, so what is loaded after importing numeric tells. Should another torch import SymPy by itself, the syntax
    # trees above still show that numeric does not.
    third_party = {
        target.rpartition(".")[0] or target
        for name, path in modules().items()
        if layer_of(name) == "noetherflow.numeric"
        for statement in imports_of(path.read_text(encoding="utf-8"))
        for target in statement.targets
        if target.split(".")[0] == "torch"
    }
    before = loaded_after("import torch", *(f"import {name}" for name in sorted(third_party)))
    loaded = loaded_after("import torch", *imports_of_folder("noetherflow.numeric"))
    assert "sympy" not in loaded or "sympy" in before
    assert not any(name.startswith(("noetherflow.symbolic", "noetherflow.bridge")) for name in loaded)
