"""Less of a machine, the same promises: without compiled code, without AVX-512, on one processor.

Each runs a cross-section of the tests again in a process of its own, under the environment that takes something away.
`make acceptance` runs more of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ACROSS = (
    "tests/runtime/test_constraints.py",
    "tests/lang/test_typed_on_the_engine.py",
    "tests/lang/test_engine.py",
    "tests/fsm/test_masks.py",
)
MORE = ("tests/runtime", "tests/lang", "tests/fsm", "tests/model", "tests/interpreter", "--ignore=tests/runtime/server")


@pytest.mark.parametrize(
    ("environment", "one_processor", "own"),
    [
        pytest.param({"PALMETTE_NATIVE": "0"}, False, (), id="without compiled code"),
        pytest.param(
            {"PALMETTE_CPU_KERNELS": "avx2"}, False, ("tests/model/test_embedded_model.py",), id="without AVX-512"
        ),
        pytest.param({"OMP_NUM_THREADS": "1"}, True, ("tests/runtime/test_driver.py",), id="one processor"),
    ],
)
@pytest.mark.timeout(900)
def test_the_tests_pass_with_less(
    environment: dict[str, str], one_processor: bool, own: tuple[str, ...], full: bool
) -> None:
    if "PALMETTE_CPU_KERNELS" in environment and not _runs_here(environment["PALMETTE_CPU_KERNELS"]):
        pytest.skip("this machine has no compiled core with AVX2 anyway")
    if one_processor and not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system cannot confine a process to one processor")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *(MORE if full else (*ACROSS, *own)), "-x", "-p", "no:randomly"],
        cwd=ROOT,
        env={**os.environ, **environment},
        preexec_fn=_confine if one_processor else None,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


def _runs_here(instruction_set: str) -> bool:
    from palmette.kernels.cpu.library import library
    from palmette.native import NotBuilt

    try:
        return instruction_set in library().instruction_sets
    except NotBuilt:
        return False


def _confine() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
