"""LMQL as a peer, for JSON alone: on transformers in fp32, every record a chain of queries, all records at once.

Runs in an interpreter that has lmql, transformers and accelerate, on the fp32 checkpoint that `benchmarks.peers.export`
wrote. LMQL has no JSON schemas: what lies between the fields is written as text, and each field is a hole under its own
constraint, in a query of its own. (A query of several holes, LMQL 0.7.3 on transformers 5.23, doubles or drops the
first token of a later one, out of its cache of what the model wrote ahead; with that cache off it is right, and reads
the prompt again for every token.) LMQL computes in a process that it starts, and batches what comes within 0.1 s.
"""

from __future__ import annotations

import asyncio
import importlib
import multiprocessing
import time
from collections.abc import Callable
from typing import Any

from benchmarks.peers.protocol import Watch, main

library: Any = importlib.import_module("lmql")

_QUERY = '"{prompt}[X]" where {constraint}\nreturn X'
_STRING = "STOPS_BEFORE(X, '\"') and len(TOKENS(X)) < 16"
_INTEGER = "INT(X) and len(TOKENS(X)) < 5"


class LMQL:
    """One model, in the process of LMQL's own that the first query starts."""

    def __init__(self, work: dict[str, Any], variant: str) -> None:
        path = work["model"]["fp32"]
        self._loop = asyncio.new_event_loop()
        self._model = library.model(f"local:{path}", tokenizer=path, cuda=False, batch_size=64)
        self._holes = {
            kind: library.query(_QUERY.replace("{constraint}", constraint), is_async=True)
            for kind, constraint in (("string", _STRING), ("integer", _INTEGER))
        }
        self._loop.run_until_complete(self._fill("integer", "One, two, 3, "))  # loads

    def generate(self, row: dict[str, Any], watch: Callable[[], Watch]) -> Watch:
        raise NotImplementedError("LMQL adds nothing to transformers here")

    def extract(self, row: dict[str, Any]) -> tuple[float, list[str]]:
        kinds = {name: field["type"] for name, field in row["schema"]["properties"].items()}
        start = time.perf_counter()
        texts = self._loop.run_until_complete(self._records(row["instructions"], row["texts"], kinds))
        return time.perf_counter() - start, texts

    def close(self) -> None:
        for process in multiprocessing.active_children():
            process.terminate()
            process.join()

    async def _records(self, instructions: str, texts: list[str], kinds: dict[str, str]) -> list[str]:
        return list(await asyncio.gather(*(self._record(instructions + text, kinds) for text in texts)))

    async def _record(self, prompt: str, kinds: dict[str, str]) -> str:
        """One record, a field after the other."""
        record = ""
        for name, kind in kinds.items():
            quote = '"' if kind == "string" else ""
            record += f'{", " if record else "{"}"{name}": {quote}'
            record += f"{await self._fill(kind, prompt + record)}{quote}"
        return record + "}"

    async def _fill(self, kind: str, prompt: str) -> object:
        answer: object = await self._holes[kind](prompt=prompt, model=self._model, decoder="argmax")
        return answer


if __name__ == "__main__":
    main(LMQL, ["lmql", "transformers", "torch"])
