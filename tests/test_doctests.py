"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import palmette

MODULES = sorted(found.name for found in pkgutil.walk_packages(palmette.__path__, "palmette."))
SCRIPTS = {"palmette.__main__"}  # importing it starts the command line


@pytest.mark.parametrize("name", ["palmette", *(name for name in MODULES if name not in SCRIPTS)])
def test_the_examples_of_a_module_run(name: str) -> None:
    module = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = [importlib.import_module(name) for name in MODULES if name not in SCRIPTS]
    assert sum(len(test.examples) for module in modules for test in finder.find(module)) >= 3
