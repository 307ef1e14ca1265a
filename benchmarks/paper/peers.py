"""Peers that answer what the full system was asked: the same prompts, as many new tokens, the same choices.

Their order is the best for each: requests whose predecessors are answered, those first that share most with what is
cached. Peers without constraints generate as many tokens as ours did under one.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from benchmarks.paper.measure import Row, Run
from benchmarks.paper.record import Recorded, one_by_one
from palmette.runtime.models.load import find_model
from palmette.runtime.models.loaded import LoadedModel

SLOTS = 8  # sequences that llama.cpp decodes side by side
CONTEXT = 16384  # tokens of its KV cache, as many as our pool holds by default
_SCRIPT = Path(__file__).with_name("llama_cpp_replay.py")


class PeerMissing(Exception):
    """The peer is not installed, or cannot run this model."""


class Peer(Protocol):
    """Another engine."""

    name: str

    def run(self, full: Run) -> Row:
        """
        Raises:
            PeerMissing: it cannot be run here.
        """
        ...


class Transformers:
    """`generate` in fp32, in this process: one request after the other, with the KV of the last sequence kept."""

    def __init__(self, model: LoadedModel) -> None:
        self.name = "transformers"
        self._model = model
        self._peer: Any = None

    def run(self, full: Run) -> Row:
        if self._peer is None:
            try:
                from benchmarks.peer import TransformersPeer

                self._peer = TransformersPeer(self._model)
            except (ImportError, OSError, ValueError) as error:
                raise PeerMissing(str(error).splitlines()[0]) from error
        requests = [full.recorded[i].request for i in one_by_one(full.recorded)]
        num_new = {entry.request.request_id: entry.num_new for entry in full.recorded}
        seconds, computed = self._peer.run(requests, num_new)
        return _row(self.name, full, seconds, computed, None)


class LlamaCpp:
    """llama-cpp-python in an interpreter of its own, on the model's file or another one of the same model."""

    def __init__(self, python: str, model_name: str, slots: int, kind: str = "") -> None:
        self.name = "llama.cpp" + (f" {kind}" if kind else "") + (f" x{slots}" if slots > 1 else "")
        self._python, self._model_name, self._slots = python, model_name, slots

    def run(self, full: Run) -> Row:
        file, _ = find_model(self._model_name)
        if not file.is_file():
            raise PeerMissing("it reads .gguf files only")
        work = {
            "model": str(file),
            "slots": self._slots,
            "threads": os.cpu_count(),
            "context": CONTEXT,
            "requests": as_work(full.recorded),
        }
        try:
            done = subprocess.run(
                [self._python, str(_SCRIPT)], input=json.dumps(work), capture_output=True, text=True, check=False
            )
        except OSError as error:
            raise PeerMissing(str(error)) from error
        if done.returncode:
            raise PeerMissing((done.stderr.strip().splitlines() or ["no word"])[-1])
        found = json.loads(done.stdout.strip().splitlines()[-1])
        return _row(self.name, full, found["seconds"], found["computed"], found["passes"])


def make_peers(given: Sequence[str], model: LoadedModel) -> list[Peer]:
    """Peers by their command line: `transformers`, `llama_cpp=PYTHON`, `llama_cpp=PYTHON@FILE.gguf`: the model
    requantised, since llama.cpp is faster with some formats than with others.

    Raises:
        ValueError: no such peer.
    """
    peers: list[Peer] = []
    for text in given:
        name, _, python = text.partition("=")
        if name == "transformers" and not python:
            peers.append(Transformers(model))
        elif name == "llama_cpp" and python:
            python, _, file = python.partition("@")
            kind = Path(file).stem
            peers += [LlamaCpp(python, file or model.name, slots, kind) for slots in (1, SLOTS)]
        else:
            raise ValueError(f"--peer {text}: say transformers, or llama_cpp=PYTHON[@FILE.gguf]")
    return peers


def as_work(recorded: Sequence[Recorded]) -> list[dict[str, Any]]:
    """Recorded requests as the plain data that a peer's process reads."""
    return [
        {
            "prompt": entry.prompt,
            "new": entry.new + entry.prompt[-1:] * (entry.num_new - len(entry.new)),
            "choices": entry.choices,
            "after": entry.after,
        }
        for entry in recorded
    ]


def _row(name: str, full: Run, seconds: float, computed: int, passes: int | None) -> Row:
    prompt = full.row.prompt_tokens
    return Row(
        workload=full.row.workload,
        system=name,
        programs=full.row.programs,
        seconds=seconds,
        latency=None,
        requests=full.row.requests,
        prompt_tokens=prompt,
        computed_tokens=computed,
        new_tokens=full.row.new_tokens,
        steps=passes,
        hit_rate=1 - computed / prompt,
        share_of_optimum=None,
        same=1.0,
    )
