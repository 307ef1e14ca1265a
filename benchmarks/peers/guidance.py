"""guidance as a peer, for JSON alone: `--variant llama_cpp` (the shipped file) or `transformers` (fp32).

Runs in an interpreter that has guidance and the engine below it. One text after the other: guidance has no batches.
Its model object carries the computed instructions on, so they are read once.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.protocol import Watch, main

library: Any = importlib.import_module("guidance")


class Guidance:
    """One model."""

    def __init__(self, work: dict[str, Any], variant: str) -> None:
        path, threads = Path(work["model"]["gguf"]), work["threads"]
        if variant == "transformers":
            importlib.import_module("torch").set_num_threads(threads)
            transformers: Any = importlib.import_module("transformers")
            load: Any = importlib.import_module("benchmarks.peers.transformers").load
            tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            self._model = library.models.Transformers(load(str(path)), tokenizer, echo=False)
        else:
            self._model = library.models.LlamaCpp(str(path), n_ctx=2048, n_threads=threads, echo=False, verbose=False)

    def generate(self, row: dict[str, Any], watch: Callable[[], Watch]) -> Watch:
        raise NotImplementedError("guidance has no batches")

    def extract(self, row: dict[str, Any]) -> tuple[float, list[str]]:
        hole = library.json("x", schema=row["schema"], max_tokens=row["max_tokens"], temperature=0.0)
        start = time.perf_counter()
        beginning = self._model + row["instructions"]
        texts = [str((beginning + text + hole)["x"]) for text in row["texts"]]
        return time.perf_counter() - start, texts

    def close(self) -> None:
        del self._model


if __name__ == "__main__":
    main(Guidance, ["guidance", "llguidance", "llama_cpp_python", "transformers"])
