"""Who takes part, and a process for each, kept alive from round to round.

Only one of them computes at a time: whoever is not asked is stopped by a signal, with its idle threads and with every
process that it started. Knows commands and pipes; what a row is and what a figure means it does not know.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from benchmarks.peers.environments import python_of

ROOT = Path(__file__).parents[2]  # the folder that `benchmarks` is in
_FOUND = "import importlib.util as u, sys; sys.exit(not all(u.find_spec(name) for name in sys.argv[1:]))"


@dataclass(frozen=True, slots=True)
class Engine:
    """One column of the table."""

    name: str
    title: str
    module: str  # what its process runs
    variant: str
    kind: Literal["quantised", "fp32"]
    environment: str  # of environments.ENVIRONMENTS; "" = ours
    needs: tuple[str, ...] = ()  # modules its interpreter must have
    rows: tuple[str, ...] = ()  # all it can do; () = every row
    is_client: bool = False  # its model is computed by our server: what it costs is its language and HTTP
    reads_checkpoint: bool = False  # of what benchmarks.peers.export wrote

    @property
    def is_ours(self) -> bool:
        return not self.environment


_HERE = "benchmarks.peers"
_TORCH = ("torch", "transformers", "accelerate", "gguf")
_TEXT = ("extraction", "load")
_LMQL = ("lmql", "torch", "transformers", "accelerate")
_SERVED = ("decode_1_64", "decode_16_64", "shared_32", "extraction")
ENGINES: tuple[Engine, ...] = (
    Engine("palmette", "palmette", f"{_HERE}.palmette_rows", "auto", "quantised", ""),
    Engine("palmette_fp32", "palm. fp32", f"{_HERE}.palmette_rows", "float32", "fp32", ""),
    Engine("palmette_served", "palm. served", f"{_HERE}.palmette_rows", "served", "quantised", "", rows=_SERVED),
    Engine(
        "sglang", "SGLang, ours", f"{_HERE}.sglang", "", "quantised", "sglang", ("sglang",), _SERVED, is_client=True
    ),
    Engine("llama_q4_1", "llama Q4_1", f"{_HERE}.llama_cpp", "q4_1", "quantised", "llama_cpp", ("llama_cpp",)),
    Engine("llama_q4_0", "llama Q4_0", f"{_HERE}.llama_cpp", "q4_0", "quantised", "llama_cpp", ("llama_cpp",)),
    Engine("vllm", "vLLM fp32", f"{_HERE}.vllm", "", "fp32", "vllm", ("vllm",), reads_checkpoint=True),
    Engine("transformers", "transf. fp32", f"{_HERE}.transformers", "", "fp32", "transformers", _TORCH),
    Engine("outlines", "outlines fp32", f"{_HERE}.outlines", "", "fp32", "transformers", ("outlines", *_TORCH), _TEXT),
    Engine(
        "guidance", "guidance Q4_1", f"{_HERE}.guidance", "", "quantised", "llama_cpp", ("guidance", "llama_cpp"), _TEXT
    ),
    Engine("lmql", "LMQL fp32", f"{_HERE}.lmql", "", "fp32", "lmql", _LMQL, _TEXT, reads_checkpoint=True),
)


def find_python(engine: Engine, root: Path, given: Mapping[str, str]) -> str | None:
    """An interpreter that has what the engine needs: the given one, the installed one, any given one, ours."""
    if not engine.environment:
        return sys.executable
    candidates = [given.get(engine.environment), str(python_of(root, engine.environment)), *given.values()]
    for python in dict.fromkeys([*candidates, sys.executable]):
        if python and Path(python).exists():
            done = subprocess.run([python, "-c", _FOUND, *engine.needs], cwd="/", capture_output=True, check=False)
            if not done.returncode:
                return python
    return None


class EngineFailed(Exception):
    """A process died or went silent; says its last words."""


class EngineProcess:
    """One engine's process and those that it started. They are stopped except while it is asked."""

    def __init__(self, engine: Engine, python: str, work: Path, logs: Path, *, threads: int) -> None:
        self.engine = engine
        self._log = logs / f"{engine.name}.log"
        command = [python, "-m", engine.module, str(work), "--serve"]
        if engine.variant:
            command += ["--variant", engine.variant]
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env=_settings(engine, python, threads),
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in: IO[bytes] = self._process.stdin
        self._out: IO[bytes] = self._process.stdout
        self.versions: dict[str, str] = {}

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_loaded(self, seconds: float = 300.0) -> None:
        """
        Raises:
            EngineFailed: it does not come up.
        """
        self.versions = self._read(seconds)["versions"]
        self._stop()

    def ask(self, row: str, seconds: float = 240.0) -> dict[str, Any]:
        """One sample of a row, as protocol.py answers it.

        Raises:
            EngineFailed: it died, or took longer than that.
        """
        self._signal(signal.SIGCONT)
        try:
            self._in.write(row.encode() + b"\n")
            self._in.flush()
        except BrokenPipeError:
            raise EngineFailed(self._last_words()) from None
        answer = self._read(seconds)
        self._stop()
        return answer

    def close(self) -> None:
        """End the process, in whatever state it is. May be called twice."""
        if self._process.poll() is None:
            self._signal(signal.SIGKILL)
        self._process.wait()
        self._in.close()
        self._out.close()

    def _stop(self) -> None:
        self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        for pid in [*descendants(self.pid), self.pid]:
            with contextlib.suppress(ProcessLookupError):  # gone by itself
                os.kill(pid, number)

    def _read(self, seconds: float) -> dict[str, Any]:
        until = time.monotonic() + seconds
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._out], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise EngineFailed(f"no answer within {seconds:.0f} s; {self._last_words()}")
            part = os.read(self._out.fileno(), 1 << 20)
            if not part:
                raise EngineFailed(self._last_words())
            line += part
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        lines = [line for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return f"{lines[-1].strip()} ({self._log})" if lines else f"no word ({self._log})"


def descendants(pid: int) -> list[int]:
    """The processes that this one started, and those that they did; [] where the system does not tell (no /proc)."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone by now
            parent = int(stat.read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = list(children.get(pid, ()))
    for child in found:  # grows
        found += children.get(child, ())
    return found


def _settings(engine: Engine, python: str, threads: int) -> dict[str, str]:
    """The process's environment variables."""
    settings = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
        "GGML_NO_BACKTRACE": "1",  # a failed assertion in llama.cpp would start a debugger
    }
    if engine.environment == "vllm":  # its manual asks for Intel's OpenMP, which its package brings along
        preload = Path(python).parent.parent / "lib" / "libiomp5.so"
        if preload.exists():
            settings["LD_PRELOAD"] = str(preload)
    return settings


def chosen(names: Sequence[str]) -> Iterator[Engine]:
    """The engines of these names or environments, in the table's order; all, where none is named."""
    for engine in ENGINES:
        if not names or engine.name in names or engine.environment in names:
            yield engine
