"""`import palmette` is cheap: it brings none of the heavy packages, each of which comes at its first use."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "pydantic",
    "jinja2",
    "typer",
    "rich",
    "safetensors",
    "msgspec",
    "httpx2",
    "opentelemetry",
    "starlette",
    "zmq",
)


def loaded_by(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter holds after running `code`."""
    script = f"{code}\nimport sys\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    return set(out.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "palmette",
        "palmette.testing",
        "palmette.ir",
        "palmette.compat.sglang",
        "palmette.compat.sglang.lang.ir",
        "palmette.compat.sglang.lang.api",
    ],
)
def test_importing_the_language_loads_nothing_heavy(module: str) -> None:
    assert loaded_by(f"import {module}") == set()


def test_writing_tracing_and_running_a_program_loads_nothing_heavy() -> None:
    code = """
import palmette as pm
from palmette.testing import ScriptedBackend
@pm.function
def qa(s, q):
    s += pm.user(q) + pm.assistant(pm.gen("a", max_tokens=4))
str(qa.trace())
assert qa.run("why", backend=ScriptedBackend(["so"]))["a"] == "so"
assert len(qa.map(["why"] * 3, backend=ScriptedBackend(lambda p: "so"))) == 3
"""
    assert loaded_by(code) == set()


def test_star_import_and_dir_name_the_runtime_without_loading_it_before_use() -> None:
    assert (
        loaded_by("import palmette; assert 'Runtime' in palmette.__all__; assert not hasattr(palmette, 'nothing')")
        == set()
    )
    assert "torch" in loaded_by("from palmette import Runtime")
