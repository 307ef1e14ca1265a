"""Acceptance line 7: what goes wrong has a name, ends every wait, and leaves no token behind."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import palmette as pm
from palmette.interpreter.backends.local import Runtime
from palmette.runtime.models.load import find_model
from palmette.runtime.models.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    """A tiny runtime that must end with every slot free or cached."""
    with Runtime(tiny_model(), kv_tokens=2048) as runtime:
        yield runtime
        deadline = time.monotonic() + 10
        while (stats := runtime.stats()).kv_free + stats.kv_evictable != stats.kv_total:
            assert time.monotonic() < deadline, f"leaked tokens: {stats}"
            time.sleep(0.01)
        assert stats.running == stats.waiting == 0


@pm.function
def simple(s: pm.State, text: str, tokens: int = 4) -> None:
    s += text + pm.gen("x", max_tokens=tokens, ignore_eos=True)


def test_a_wrong_model_path_says_the_three_ways_out() -> None:
    with pytest.raises(pm.ModelNotFound, match=r"no/such/model\.gguf.*(?s:.*)smollm2.*(?s:.*)hub"):
        pm.Runtime(model_path="no/such/model.gguf")


def test_a_wrong_architecture_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["MambaForCausalLM"], "model_type": "mamba"}))
    with pytest.raises(pm.UnsupportedArchitecture, match=r"(?i)mamba"):
        pm.Runtime(model_path=str(tmp_path))


@pytest.mark.model
@pytest.mark.parametrize("share", [0.00001, 0.001, 0.5, 0.999])
def test_a_truncated_gguf_names_the_file_and_an_offset(tmp_path: Path, share: float) -> None:
    data = find_model("smollm2")[0].read_bytes()
    short = tmp_path / "short.gguf"
    short.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(pm.CorruptModel) as caught:
        pm.Runtime(model_path=str(short))
    assert "short.gguf" in str(caught.value)
    assert caught.value.offset is not None


def test_an_unknown_option_of_a_runtime_is_refused() -> None:
    with pytest.raises(pm.InvalidOption, match=r"kv_tokns.*kv_tokens"):
        pm.Runtime(model_path="tiny", kv_tokns=5)


def test_an_unknown_option_of_a_run_is_refused(runtime: Runtime) -> None:
    with pytest.raises(pm.InvalidOption, match=r"temprature.*temperature"):
        simple.run(text="a", temprature=1, backend=runtime)


def test_a_prompt_longer_than_the_context_is_refused(runtime: Runtime) -> None:
    with pytest.raises(pm.PromptTooLong, match=r"hole 'x'") as caught:
        simple.run(text="long " * 1000, backend=runtime)
    assert caught.value.prompt_len == 5000
    assert caught.value.state is not None
    assert simple.run(text="short", backend=runtime)["x"] is not None


def test_a_hole_that_never_existed_is_named(runtime: Runtime) -> None:
    state = simple.run(text="a", backend=runtime)
    with pytest.raises(pm.UnknownHole, match=r"'y'.*'x'"):
        state["y"]


def test_an_exception_in_the_body_frees_what_was_in_flight(runtime: Runtime) -> None:
    @pm.function
    def broken(s: pm.State) -> None:
        s += "endless" + pm.gen("x", max_tokens=1500, ignore_eos=True)
        raise ValueError("in the body")

    with pytest.raises(ValueError, match=r"in the body") as caught:
        broken.run(backend=runtime)
    assert any("broken" in note for note in caught.value.__notes__)


def test_a_hole_cancelled_mid_generation_raises_cancelled(runtime: Runtime) -> None:
    @pm.function
    def cancelled(s: pm.State) -> None:
        s += "endless" + pm.gen("x", max_tokens=1500, ignore_eos=True)
        pieces = s.stream("x")
        next(pieces)
        s.cancel()
        with pytest.raises(pm.Cancelled):
            s["x"]

    with pytest.raises(pm.Cancelled):
        cancelled.run(backend=runtime)


def test_a_backend_that_closes_ends_every_wait() -> None:
    runtime = Runtime(tiny_model(), kv_tokens=2048)
    state = simple.run(text="endless", tokens=1500, backend=runtime, stream=True)
    next(state.text_iter("x"))
    closer = threading.Thread(target=runtime.close)
    closer.start()
    with pytest.raises(pm.EngineDied):
        state["x"]
    closer.join(10)
    with pytest.raises(pm.EngineDied):
        simple.run(text="again", backend=runtime)


def test_the_interpreter_exits_with_live_programs() -> None:
    code = textwrap.dedent("""
        import palmette as pm
        from palmette.testing import tiny_runtime

        @pm.function
        def endless(s):
            s += "endless" + pm.gen("x", max_tokens=1900, ignore_eos=True)
            s["x"]

        @pm.function
        async def aendless(s):
            s += "endless" + pm.gen("x", max_tokens=1900, ignore_eos=True)
            await s.get("x")

        runtime = tiny_runtime()
        states = [endless.run(backend=runtime, stream=True) for _ in range(3)]
        states += [aendless.run(backend=runtime, stream=True) for _ in range(3)]
        next(states[0].text_iter("x"))
        print("leaving")
    """)
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "leaving\n"
    assert done.returncode == 0
    assert done.stderr == ""
    assert time.monotonic() - start < 30  # five seconds on a quiet machine, imports included
