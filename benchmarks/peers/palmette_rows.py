"""Palmette under the peers' protocol: the public Runtime, its requests as token ids, and a program for the records.

    python -m benchmarks.peers.palmette_rows WORK.json [OUT.json] --variant auto|float32 [--rows ...] [--rounds 3]

Nothing is tuned here: a Runtime as anybody builds it, emptied before each row.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

import palmette as pm
from benchmarks.peers.protocol import Watch, main
from palmette.interpreter.backends.local import Runtime
from palmette.types import Event, GenerateRequest, SamplingParams, TokenEvent


@pm.function
def record(s: pm.State, instructions: str, text: str, schema: dict[str, Any], limit: int) -> str:
    """One record as JSON text."""
    s += instructions + text + pm.gen("record", json_schema=schema, max_tokens=limit)
    found: str = s["record"]
    return found


class Palmette:
    """One Runtime."""

    def __init__(self, work: dict[str, Any], variant: str) -> None:
        torch.set_num_threads(work["threads"])
        self._runtime = Runtime(work["model"].get("palmette", "smollm2"), dtype=variant or "auto")

    def generate(self, row: dict[str, Any], watch: Callable[[], Watch]) -> Watch:
        self._runtime.flush_cache()
        inbox: queue.SimpleQueue[Sequence[Event]] = queue.SimpleQueue()
        deliver = inbox.put
        params = SamplingParams(max_new_tokens=row["num_new"], temperature=0.0, ignore_eos=True)
        requests = [GenerateRequest(str(i), tuple(ids), params) for i, ids in enumerate(row["prompts"])]
        clock = watch()
        for request in requests:
            self._runtime.submit(request, deliver)
        live = len(requests)
        while live:
            step: dict[int, Sequence[int]] = {}
            for event in inbox.get():
                assert isinstance(event, TokenEvent)
                step[int(event.request_id)] = event.token_ids
                if event.finish is not None:
                    live -= 1
                    if event.finish.error is not None:
                        raise event.finish.error
            clock.tokens(step)
        return clock

    def extract(self, row: dict[str, Any]) -> tuple[float, list[str]]:
        self._runtime.flush_cache()
        ask = record.bind(instructions=row["instructions"], schema=row["schema"], limit=row["max_tokens"])
        start = time.perf_counter()
        texts: list[str] = ask.map([{"text": text} for text in row["texts"]], backend=self._runtime, temperature=0)
        return time.perf_counter() - start, texts

    def close(self) -> None:
        self._runtime.close()


if __name__ == "__main__":
    main(Palmette, ["palmette", "torch"])
