"""Nothing in the package runs code that came as data."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "palmette"
FILES = sorted(PACKAGE.rglob("*.py"))

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {("torch", "load"), ("os", "system"), ("os", "popen"), ("numpy", "load"), ("np", "load")}
ARGUMENTS = {"trust_remote_code", "allow_pickle", "shell"}


def breaches(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names if alias.name.split(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in MODULES:
                yield module
            case ast.Call(func=ast.Name(id=name)) if name in CALLS:
                yield name
            case ast.Attribute(value=ast.Name(id=module), attr=name) if (module, name) in ATTRIBUTES:
                yield f"{module}.{name}"
            case ast.keyword(arg=str(name)) if name in ARGUMENTS:
                yield name
            case ast.ExceptHandler(body=[ast.Pass()], type=None | ast.Name(id="Exception" | "BaseException")):
                yield "an exception that is swallowed"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_file_runs_data_or_swallows_errors(file: Path) -> None:
    assert not list(breaches(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "torch.load(f)",
        "f(trust_remote_code=True)",
        "try:\n  f()\nexcept Exception:\n  pass",
        "try:\n  f()\nexcept:\n  pass",
    ],
)
def test_the_check_itself_finds_what_it_looks_for(source: str) -> None:
    assert list(breaches(source))


def test_no_file_names_an_absolute_path_of_a_developers_machine() -> None:
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert not any(start in text for start in ("/home/", "/Users/", "/work/", "C:\\\\")), file


def test_every_module_says_what_it_is() -> None:
    silent = [
        file.name
        for file in FILES
        if (text := file.read_text(encoding="utf-8")) and not ast.get_docstring(ast.parse(text))
    ]
    assert not silent
