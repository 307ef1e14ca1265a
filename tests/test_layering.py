"""Imports go one way: the arrows of docs/architecture.md, read from the source without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "palmette"

# What a layer may import of the package, besides itself. The longest prefix of a module's name is its layer.
ALLOWED: dict[str, tuple[str, ...]] = {
    "palmette.errors": (),
    "palmette.native": ("palmette.errors",),
    "palmette.tracers": (),
    "palmette.specs": ("palmette.errors",),
    "palmette.types": ("palmette.specs", "palmette.errors"),
    "palmette.formats": ("palmette.types", "palmette.specs", "palmette.errors"),
    "palmette.ir": ("palmette.types", "palmette.specs", "palmette.errors"),
    "palmette.interpreter": (
        "palmette.tracers",
        "palmette.ir",
        "palmette.formats",
        "palmette.types",
        "palmette.specs",
        "palmette.errors",
    ),
    "palmette.interpreter.backends.local": ("palmette.runtime", "palmette.types", "palmette.errors"),
    "palmette.interpreter.backends.http": (
        "palmette.interpreter",
        "palmette.runtime.tokenizer",
        "palmette.types",
        "palmette.errors",
    ),
    "palmette.interpreter.backends.http_connect": (
        "palmette.interpreter",
        "palmette.runtime.tokenizer",
        "palmette.runtime.tokenizer_data",
        "palmette.runtime.models.tokenizer_of",
        "palmette.types",
        "palmette.errors",
    ),
    "palmette.interpreter.backends.http_sglang": (
        "palmette.interpreter",
        "palmette.runtime.detokenizer",
        "palmette.types",
        "palmette.specs",
        "palmette.errors",
    ),
    "palmette.lang": (
        "palmette.interpreter",
        "palmette.formats",
        "palmette.ir",
        "palmette.types",
        "palmette.specs",
        "palmette.errors",
        "palmette.fsm.parse",
        "palmette.fsm.language",
    ),
    "palmette.fsm": ("palmette.types", "palmette.specs", "palmette.native", "palmette.errors"),
    "palmette.kernels": ("palmette.types", "palmette.native", "palmette.errors"),
    "palmette.runtime": (
        "palmette.native",
        "palmette.fsm",
        "palmette.kernels",
        "palmette.formats",
        "palmette.types",
        "palmette.specs",
        "palmette.errors",
    ),
    "palmette.runtime.server": (
        "palmette.tracers",
        "palmette.runtime",
        "palmette.ir.spec_data",
        "palmette.fsm",
        "palmette.formats",
        "palmette.types",
        "palmette.specs",
        "palmette.errors",
    ),
    "palmette.testing": (
        "palmette.interpreter.backends.local",
        "palmette.fsm",
        "palmette.types",
        "palmette.specs",
        "palmette.errors",
    ),
}
# These two stand at the top and may import anything.
TOP = ("palmette.compat", "palmette.cli", "palmette.doctor", "palmette.__main__")

# The door from the language half into the runtime: who may open it, and only when it is used.
DOOR = "palmette.interpreter.backends.local"
LAZY_DOORS = ("palmette", "palmette.testing")
EAGER_DOOR = "palmette.lang.engine"  # itself loaded at first use of `palmette.Engine`
# The door to a server: it takes text and tokens from the runtime, and nothing that computes.
HTTP_DOOR = "palmette.interpreter.backends.http"
HTTP_PARTS = tuple(f"{HTTP_DOOR}_{part}" for part in ("client", "connect", "hints", "requests", "sglang"))

NO_TORCH = ("palmette.errors", "palmette.types", "palmette.ir", "palmette.interpreter", "palmette.lang", "palmette.fsm")
PURE = ("request", "radix_cache", "radix_node", "allocator", "policy", "scheduler", "cache_hints", "scheduled")
IMPURE = ("torch", "numpy", "threading", "_thread", "time", "asyncio", "queue", "concurrent", "multiprocessing")


@dataclass(frozen=True)
class Import:
    """One imported module. `lazy` ones stand in a function, `typing` ones below `if TYPE_CHECKING`."""

    module: str
    line: int
    lazy: bool
    typing: bool


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def within(module: str, layer: str) -> bool:
    return module == layer or module.startswith(f"{layer}.")


def imports_of(module: str) -> Iterator[Import]:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    pending: list[tuple[ast.AST, bool, bool]] = [(tree, False, False)]
    while pending:
        node, lazy, typing = pending.pop()
        lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, lazy, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: imports are absolute"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield Import(name if name in MODULES else str(node.module), node.lineno, lazy, typing)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += [(child, lazy, True) for child in node.body]
            pending += [(child, lazy, typing) for child in node.orelse]
        else:
            pending += [(child, lazy, typing) for child in ast.iter_child_nodes(node)]


def layer_of(module: str) -> str | None:
    layers = [layer for layer in ALLOWED if within(module, layer)]
    return max(layers, key=len, default=None)


def may_import(module: str, target: str) -> bool:
    layer = layer_of(module)
    if layer is None:
        return module == "palmette" or any(within(module, top) for top in TOP)
    return layer_of(target) == layer or any(within(target, allowed) for allowed in ALLOWED[layer])


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_lies_below_it(module: str) -> None:
    breaches = [
        f"{module}:{found.line} imports {found.module}"
        for found in imports_of(module)
        if within(found.module, "palmette") and found.module != DOOR and not may_import(module, found.module)
    ]
    assert not breaches


def test_the_door_into_the_runtime_is_opened_only_when_it_is_used() -> None:
    for module in MODULES:
        for found in imports_of(module):
            if found.module != DOOR or found.typing or any(within(module, top) for top in TOP):
                continue
            assert module == EAGER_DOOR or (module in LAZY_DOORS and found.lazy), f"{module}:{found.line}"
    for module in MODULES:
        if module != EAGER_DOOR and within(module, "palmette.lang"):
            assert all(found.module != EAGER_DOOR for found in imports_of(module)), module


def test_the_door_to_a_server_is_opened_only_when_it_is_used() -> None:
    for module in MODULES:
        if module == HTTP_DOOR or module in HTTP_PARTS or any(within(module, top) for top in TOP):
            continue
        for found in imports_of(module):
            if found.module == HTTP_DOOR or found.module in HTTP_PARTS:
                assert found.typing or (module in LAZY_DOORS and found.lazy), f"{module}:{found.line}"


def test_the_client_of_a_server_imports_nothing_that_computes() -> None:
    """Nor may anything that it imports, at any time, or that those import when they are."""
    pending, seen = [HTTP_DOOR], set[str]()
    while pending:
        module = pending.pop()
        seen.add(module)
        for found in imports_of(module):
            if found.typing or (found.lazy and not within(module, "palmette.interpreter")):
                continue
            heavy = ("torch", "transformers", "palmette.kernels", "palmette.runtime.server", DOOR)
            assert not any(within(found.module, each) for each in heavy), f"{module}:{found.line}"
            if found.module in MODULES and found.module not in seen:
                pending.append(found.module)


def test_the_language_half_and_the_automata_never_import_torch() -> None:
    for module in MODULES:
        if module not in (DOOR, EAGER_DOOR) and any(within(module, layer) for layer in NO_TORCH):
            found = [
                i.line for i in imports_of(module) if within(i.module, "torch") or within(i.module, "transformers")
            ]
            assert not found, f"{module}: lines {found}"


@pytest.mark.parametrize("name", PURE)
def test_the_logic_of_the_scheduler_imports_neither_torch_nor_threads_nor_clocks(name: str) -> None:
    """Nor may anything that it imports."""
    pending, seen = [f"palmette.runtime.{name}"], set[str]()
    while pending:
        module = pending.pop()
        seen.add(module)
        for found in imports_of(module):
            if found.typing:
                continue
            assert not any(within(found.module, impure) for impure in IMPURE), f"{module}:{found.line}"
            if found.module in MODULES and found.module not in seen:
                pending.append(found.module)


def test_no_two_modules_import_each_other() -> None:
    """At import time: what stands in functions and below TYPE_CHECKING does not count."""
    edges = {
        module: {i.module for i in imports_of(module) if i.module in MODULES and not i.lazy and not i.typing}
        for module in MODULES
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for target in sorted(edges[module]):
                visit(target, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())
