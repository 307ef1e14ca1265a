"""outlines as a peer, for JSON alone: on transformers in fp32, all prompts in one batch padded from the left.

Runs in an interpreter that has outlines, transformers, gguf and accelerate.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.protocol import Watch, main
from benchmarks.peers.transformers import load

library: Any = importlib.import_module("outlines")
transformers: Any = importlib.import_module("transformers")


class Outlines:
    """One model."""

    def __init__(self, work: dict[str, Any], variant: str) -> None:
        importlib.import_module("torch").set_num_threads(work["threads"])
        path = Path(work["model"]["gguf"])
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        tokenizer.padding_side = "left"
        self._model = library.from_transformers(load(str(path)), tokenizer)

    def generate(self, row: dict[str, Any], watch: Callable[[], Watch]) -> Watch:
        raise NotImplementedError("outlines adds nothing to transformers here")

    def extract(self, row: dict[str, Any]) -> tuple[float, list[str]]:
        prompts = [row["instructions"] + text for text in row["texts"]]
        start = time.perf_counter()
        generator = library.Generator(self._model, library.types.JsonSchema(row["schema"]))
        texts = generator.batch(prompts, max_new_tokens=row["max_tokens"], do_sample=False)
        return time.perf_counter() - start, list(texts)

    def close(self) -> None:
        del self._model


if __name__ == "__main__":
    main(Outlines, ["outlines", "outlines_core", "transformers", "torch"])
