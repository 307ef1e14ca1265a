"""What the process of each peer does, whoever the peer is: read the work, load, answer rows, measure.

    python -m benchmarks.peers.llama_cpp WORK.json OUT.json [--rows decode_1_64 ...] [--rounds 3]    all by itself
    python -m benchmarks.peers.llama_cpp WORK.json --serve                         a row a line, for benchmarks.peers

Runs in the peer's own interpreter: the standard library and nothing of ours. A peer is an object with `generate`,
`extract` and `close`; it tells a `Watch` which tokens came, and the watch does the arithmetic.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

RELOAD_BELOW = 10.0  # seconds; a model that takes longer is loaded once, whatever the rounds


class Watch:
    """Notes when tokens come, and which."""

    def __init__(self, count: int) -> None:
        self.outputs: list[list[int]] = [[] for _ in range(count)]
        self._missing = set(range(count))  # requests without a token
        self._start = time.perf_counter()
        self._first = self._last = 0.0  # seconds: every request has one token; the last token
        self._at_first = 0  # tokens that were there by then

    def tokens(self, step: Mapping[int, Sequence[int]]) -> None:
        """One step of the engine brought these tokens, by request."""
        now = time.perf_counter() - self._start
        for index, ids in step.items():
            self.outputs[index] += ids
            if ids:
                self._missing.discard(index)
                self._last = now
        if not self._first and not self._missing:
            self._first, self._at_first = now, self.num_tokens

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.outputs))

    def value(self, measure: str, prompt_tokens: int) -> float:
        """The row's figure; `measure` as in work.Row.

        Raises:
            ValueError: there is none: a request has no token, or all tokens came at once.
        """
        if self._missing:
            raise ValueError(f"{len(self._missing)} requests got no token")
        if measure == "decode":
            if self._last <= self._first:
                raise ValueError("all tokens came at once, which tells no rate")
            return (self.num_tokens - self._at_first) / (self._last - self._first)
        return prompt_tokens / self._first if measure == "prefill" else self._last


class Peer(Protocol):
    """One engine with the model loaded."""

    def generate(self, row: dict[str, Any], watch: Callable[[], Watch]) -> Watch:
        """Answer a work.Row with nothing cached from before. The clock runs from `watch()`."""

    def extract(self, row: dict[str, Any]) -> tuple[float, list[str]]:
        """Answer a work.Extraction: seconds, the constraint's compilation included, and the texts."""

    def close(self) -> None: ...


Make = Callable[[dict[str, Any], str], Peer]  # the work and the variant that the command line named -> loaded


def main(make: Make, packages: Sequence[str], prepare: Callable[[dict[str, Any], str], None] | None = None) -> None:
    """The command line of every peer.

    Args:
        packages: whose versions are told.
        prepare: called once with the work and the variant, before anything is measured.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--variant", default="", help="such as the quantisation or the dtype")
    parser.add_argument("--rows", nargs="*", help="names of rows; all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help="read names of rows from standard input")
    args = parser.parse_args()
    work = json.loads(args.work.read_text(encoding="utf-8"))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    if args.serve:
        die_with_parent()
    if prepare is not None:
        prepare(work, args.variant)
    session = _Session(make, work, args.variant)
    hello = {"versions": versions(packages)}
    if args.serve:
        print(json.dumps(hello), file=answers)
        for line in sys.stdin:
            print(json.dumps(session.answer(line.strip())), file=answers)
        session.close()
        return
    samples = [(name, session.answer(name)) for _ in range(args.rounds) for name in args.rows or work["rows"]]
    rows: dict[str, list[Any]] = {}
    for name, sample in samples:
        rows.setdefault(name, []).append(sample)
    session.close()
    for name, found in rows.items():
        print(f"{name:<14}", *(_word(sample) for sample in found), flush=True)
    if args.out:
        args.out.write_text(json.dumps({**hello, "rows": rows}, indent=1), encoding="utf-8")


class _Session:
    """A loaded peer, and how long loading took."""

    def __init__(self, make: Make, work: dict[str, Any], variant: str) -> None:
        self._make, self._work, self._variant = make, work, variant
        self._load()
        self._fresh = True

    def answer(self, name: str) -> dict[str, Any]:
        """One sample of a row: {"value"} or {"error"}, and {"outputs"} or {"texts"} where everything was answered."""
        row = self._work["rows"].get(name)
        try:
            if name == "load":
                if not self._fresh and self._seconds < RELOAD_BELOW:
                    self.close()
                    self._load()
                self._fresh = False
                return {"value": self._seconds}
            if "schema" in row:
                seconds, texts = self._peer.extract(row)
                return {"value": seconds, "texts": texts}
            watch = self._peer.generate(row, lambda: Watch(len(row["prompts"])))
            short = [len(ids) for ids in watch.outputs if len(ids) != row["num_new"]]
            if short:
                return {"error": f"{row['num_new']} tokens each were asked for, not {short[0]}"}
            try:
                figure: dict[str, Any] = {"value": watch.value(row["measure"], sum(map(len, row["prompts"])))}
            except ValueError as error:  # what was answered is compared with others' all the same
                figure = {"error": str(error)}
            return {**figure, "outputs": watch.outputs}
        except NotImplementedError as error:
            return {"skipped": str(error)}
        except Exception as error:  # noqa: BLE001 - whatever a peer raises is its answer to this row
            return {"error": f"{type(error).__name__}: {error}"}

    def _load(self) -> None:
        start = time.perf_counter()
        self._peer = self._make(self._work, self._variant)
        self._seconds = time.perf_counter() - start

    def close(self) -> None:
        self._peer.close()


def die_with_parent(by: signal.Signals = signal.SIGKILL) -> None:
    """A stopped process would not hear that its parent is gone; where the system can tell it (Linux), it does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(by))  # 1 is PR_SET_PDEATHSIG


def _word(sample: dict[str, Any]) -> str:
    """A sample for a person."""
    return f"{sample['value']:.4g}" if "value" in sample else str(sample.get("error", "-"))


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Those of the packages that are installed here, and Python's."""
    found = {"python": sys.version.split()[0]}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
