"""Every program in examples/ runs, on the tiny model: what it writes is nonsense, that it runs through is not."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import palmette as pm
from palmette.testing import tiny_runtime

FOLDER = Path(__file__).parent.parent / "examples"
NAMES = sorted(file.stem for file in FOLDER.glob("*.py") if file.stem != "__init__")


@pytest.fixture(scope="module")
def runtime() -> Iterator[pm.Runtime]:
    with tiny_runtime() as runtime:
        yield runtime


@pytest.mark.parametrize("name", [name for name in NAMES if name != "demo"])
def test_an_example_runs_and_prints(name: str, runtime: pm.Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    pm.set_default_backend(runtime)
    try:
        importlib.import_module(f"examples.{name}").main()
    finally:
        pm.set_default_backend(None)
    assert capsys.readouterr().out.strip()


def test_the_demo_runs_every_other_example(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        importlib.import_module("examples.demo").main("tiny")
    finally:
        pm.set_default_backend(None)
    out = capsys.readouterr().out
    assert all(f"--- {name}:" in out for name in NAMES if name != "demo")
