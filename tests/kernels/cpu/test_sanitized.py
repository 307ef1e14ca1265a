"""The compiled core alone under the sanitizers: random models, batches, tries and masks (fuzz.cpp).

Reading beyond an array, undefined arithmetic and data races show here and nowhere else. Small runs take the best
instruction set and memory errors; `--full` takes all of them, more rounds, and races.
"""

from __future__ import annotations

import ast
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from palmette.kernels.cpu import library
from tests.kernels.cpu.models import core

ROOT = Path(__file__).resolve().parents[3]
SOURCES = Path(library.__file__).parent
SETS = core().instruction_sets
SANITIZERS = {
    "address": ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],  # no access is optimised away
    "thread": ["-O1", "-fsanitize=thread"],
}


def setting(name: str) -> Any:
    """A constant of setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"setup.py has no {name}")


def build(folder: Path, sanitizer: str, sets: Sequence[str]) -> Path:
    """The driver with these instruction sets sanitized; the portable one is always linked, others are left out."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    by_file = setting("INSTRUCTION_SETS") if platform.machine().lower() in ("x86_64", "amd64") else {}
    base = [flag for flag in setting("FLAGS") if not flag.startswith("-O")]

    def compile_one(source: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
        name = source.stem
        plain = name == "portable" and name not in sets
        flags = ["-O0"] if plain else ["-g1", *SANITIZERS[sanitizer]]
        flags += by_file.get(source.name, []) if name in sets else []
        out = folder / f"{name}.o"
        command = [compiler, *base, *flags, "-Wno-psabi", f"-I{SOURCES}", "-c", str(source), "-o", str(out)]
        return out, subprocess.run(command, capture_output=True, text=True, check=False)

    sources = [*sorted(SOURCES.glob("*.cpp")), Path(__file__).with_name("fuzz.cpp")]
    sources.sort(key=lambda source: source.stem not in sets)  # those that take long first
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = list(pool.map(compile_one, sources))
    for _, result in done:
        assert result.returncode == 0, result.stderr[-3000:]
    driver = folder / "fuzz"
    objects = [str(out) for out, _ in done]
    command = [compiler, "-pthread", *SANITIZERS[sanitizer], *objects, "-o", str(driver)]
    linked = subprocess.run(command, capture_output=True, text=True, check=False)
    if linked.returncode and ("asan" in linked.stderr or "tsan" in linked.stderr):
        pytest.skip("this compiler has no sanitizers")
    assert linked.returncode == 0, linked.stderr[-3000:]
    return driver


def play(driver: Path, seed: int, rounds: int, instruction_set: str) -> None:
    command = [str(driver), str(seed), str(rounds), instruction_set]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer does not run on this kernel")
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == ["done"]


def test_memory_and_arithmetic_are_sound(tmp_path: Path, full: bool) -> None:
    sets = SETS if full else SETS[:1]
    driver = build(tmp_path, "address", sets)
    for instruction_set in sets:
        play(driver, 1, 60 if full else 12, instruction_set)


def test_no_data_races(tmp_path: Path, full: bool) -> None:
    if not full:
        pytest.skip("with --full only")
    play(build(tmp_path, "thread", SETS[:1]), 100, 30, SETS[0])
