"""Palmette under the peers' protocol: the public Runtime, its requests as token ids, and a program for the records.

    python -m benchmarks.peers.palmette_rows WORK.json [OUT.json] --variant auto|float32|served [--rows ...]

Nothing is tuned here: a Runtime as anybody builds it, emptied before each row. `served` is our own RuntimeEndpoint on
`palmette serve`, beside which SGLang's frontend on that server is read: there a shared prefix is a program that forks.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

import palmette as pm
from benchmarks.peers.protocol import Watch, main
from benchmarks.peers.serving import Server
from palmette.interpreter.backends.http import RuntimeEndpoint
from palmette.interpreter.backends.local import Runtime
from palmette.types import Event, GenerateRequest, SamplingParams, TokenEvent


@pm.function
def record(s: pm.State, instructions: str, text: str, schema: dict[str, Any], limit: int) -> str:
    """One record as JSON text."""
    s += instructions + text + pm.gen("record", json_schema=schema, max_tokens=limit)
    found: str = s["record"]
    return found


@pm.function
def siblings(s: pm.State, shared: str, texts: Sequence[str], limit: int) -> list[tuple[str, int]]:
    """What a branch writes behind each text, and in how many tokens. All texts begin with `shared`."""
    s += shared
    branches = s.fork(len(texts))
    for branch, text in zip(branches, texts, strict=True):
        branch += text.removeprefix(shared) + pm.gen("out", max_tokens=limit, ignore_eos=True)
    branches.join()
    return [(branch["out"], branch.get_meta_info("out")["completion_tokens"]) for branch in branches]


class Palmette:
    """One Runtime, here or behind a server."""

    def __init__(self, work: dict[str, Any], variant: str) -> None:
        torch.set_num_threads(work["threads"])
        self._server: Server | None = None
        self._runtime: Runtime | RuntimeEndpoint
        if variant == "served":
            self._server = Server(work["serve"])
            self._runtime = RuntimeEndpoint(self._server.url, self._server.key)
        else:
            self._runtime = Runtime(work["model"].get("palmette", "smollm2"), dtype=variant or "auto")

    def generate(self, row: dict[str, Any], watch: Callable[[], Watch]) -> Watch:
        self._runtime.flush_cache()
        if self._server is not None and row["shared_len"]:
            return self._forked(self._server, row, watch)
        inbox: queue.SimpleQueue[Sequence[Event]] = queue.SimpleQueue()
        deliver = inbox.put
        params = SamplingParams(max_new_tokens=row["num_new"], temperature=0.0, ignore_eos=True)
        requests = [GenerateRequest(str(i), tuple(ids), params) for i, ids in enumerate(row["prompts"])]
        clock = watch()
        for request in requests:
            self._runtime.submit(request, deliver)
        live = len(requests)
        while live:
            step: dict[int, list[int]] = {}
            for event in inbox.get():
                assert isinstance(event, TokenEvent)
                step.setdefault(int(event.request_id), []).extend(event.token_ids)
                if event.finish is not None:
                    live -= 1
                    if event.finish.error is not None:
                        raise event.finish.error
            clock.tokens(step)
        return clock

    def _forked(self, server: Server, row: dict[str, Any], watch: Callable[[], Watch]) -> Watch:
        """One program: all tokens are there when its last branch is."""
        ask = siblings.bind(shared=row["shared_text"], texts=row["texts"], limit=row["num_new"])
        clock = watch()
        found: list[tuple[str, int]] = ask.run(backend=self._runtime, temperature=0).ret_value
        clock.tokens({i: [0] * count for i, (_, count) in enumerate(found)})  # which ones is found out later
        clock.outputs[:] = server.written(row, [text for text, _ in found])
        return clock

    def extract(self, row: dict[str, Any]) -> tuple[float, list[str]]:
        self._runtime.flush_cache()
        ask = record.bind(instructions=row["instructions"], schema=row["schema"], limit=row["max_tokens"])
        start = time.perf_counter()
        texts: list[str] = ask.map([{"text": text} for text in row["texts"]], backend=self._runtime, temperature=0)
        return time.perf_counter() - start, texts

    def close(self) -> None:
        self._runtime.close()
        if self._server is not None:
            self._server.close()


if __name__ == "__main__":
    main(Palmette, ["palmette", "torch"])
