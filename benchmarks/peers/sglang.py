"""SGLang's frontend as a peer: its language, unmodified, its own RuntimeEndpoint, and our server behind it.

What it costs is the language and HTTP, against our programs on the same server (`palmette_served`). Runs in an
interpreter that has sglang's frontend. It speaks text: the row's prompts come as texts, and the server must count as
many tokens in each as the row has. What was written is told as text too, so the token ids are asked for once the clock
has stopped, and must say the same text.

A shared prefix is one program that forks, records are a batch of programs, and where decoding is measured each request
is a program of its own that streams.
"""

from __future__ import annotations

import importlib
import json
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

from benchmarks.peers.protocol import Watch, main
from benchmarks.peers.serving import Server

library: Any = importlib.import_module("sglang")
HOLE = "out"


class SGLang:
    """The frontend, connected."""

    def __init__(self, work: dict[str, Any], variant: str) -> None:
        self._server = Server(work["serve"])
        self._endpoint = library.RuntimeEndpoint(self._server.url, api_key=self._server.key)

    def generate(self, row: dict[str, Any], watch: Callable[[], Watch]) -> Watch:
        self._endpoint.flush_cache()
        states, clock = (self._forked if row["shared_len"] else self._streamed)(row, watch)
        texts = [state[HOLE] for state in states]
        counted = [state.get_meta_info(HOLE)["prompt_tokens"] for state in states]
        if counted != (wanted := [len(ids) for ids in row["prompts"]]):
            raise ValueError(f"prompts of {wanted} tokens were asked for, the server counts {counted} in their texts")
        clock.outputs[:] = self._server.written(row, texts)
        return clock

    def extract(self, row: dict[str, Any]) -> tuple[float, list[str]]:
        self._endpoint.flush_cache()
        schema = json.dumps(row["schema"])

        @library.function  # type: ignore[untyped-decorator, unused-ignore]
        def record(s: Any, text: str) -> None:
            s += row["instructions"]  # constant, so that run_batch finds it and has it cached first
            s += text
            s += library.gen(HOLE, json_schema=schema, max_tokens=row["max_tokens"])

        batch, options = [{"text": text} for text in row["texts"]], {"temperature": 0.0, "backend": self._endpoint}
        start = time.perf_counter()
        states = record.run_batch(batch, num_threads=len(batch), **options)
        seconds = time.perf_counter() - start
        return seconds, [_checked(state)[HOLE] for state in states]

    def close(self) -> None:
        self._server.close()

    def _forked(self, row: dict[str, Any], watch: Callable[[], Watch]) -> tuple[list[Any], Watch]:
        """One program, a branch a request: all tokens are there when the last branch is."""
        shared = row["shared_text"]
        found: list[Any] = []

        @library.function  # type: ignore[untyped-decorator, unused-ignore]
        def siblings(s: Any) -> None:
            s += shared
            branches = s.fork(len(row["texts"]))
            for branch, text in zip(branches, row["texts"], strict=True):
                branch += text.removeprefix(shared)
                branch += library.gen(HOLE, max_tokens=row["num_new"], ignore_eos=True)
            branches.join()
            found.extend(branches)

        clock = watch()
        _checked(siblings.run(temperature=0.0, backend=self._endpoint))
        num_tokens = {i: _num_tokens(_checked(state)) for i, state in enumerate(found)}
        clock.tokens({i: [0] * count for i, count in num_tokens.items()})  # which ones is found out later
        return found, clock

    def _streamed(self, row: dict[str, Any], watch: Callable[[], Watch]) -> tuple[list[Any], Watch]:
        """A program a request, each read by a thread as its pieces come."""

        @library.function  # type: ignore[untyped-decorator, unused-ignore]
        def alone(s: Any, text: str) -> None:
            s += text
            s += library.gen(HOLE, max_tokens=row["num_new"], ignore_eos=True)

        clock, lock = watch(), threading.Lock()
        options = {"temperature": 0.0, "stream": True, "backend": self._endpoint}
        states = [alone.run(text=text, **options) for text in row["texts"]]

        def read(i: int, state: Any) -> None:
            have = 0
            for _ in state.text_iter(HOLE):
                # What the last piece said: get_meta_info would wait for the end.
                count = state.stream_executor.meta_info[HOLE]["completion_tokens"]
                with lock:
                    clock.tokens({i: [0] * (count - have)})
                have = count

        threads = [threading.Thread(target=read, args=pair) for pair in enumerate(states)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [_checked(state) for state in states], clock


def _checked(state: Any) -> Any:
    """The finished state. SGLang keeps an error of a stream in the state; here it is raised."""
    error = state.error()  # waits
    if error is not None:
        raise error
    return state


def _num_tokens(state: Any) -> int:
    count: int = state.get_meta_info(HOLE)["completion_tokens"]
    return count


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # a failed stream, which is raised here
    main(SGLang, ["sglang", "torch"])
