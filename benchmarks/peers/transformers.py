"""transformers as a peer: fp32, `generate` on one batch padded from the left, a shared prefix computed once.

Runs in an interpreter that has transformers, gguf and accelerate. The moment of each token comes from a stopping
criterion that never stops. A shared prefix's cache is repeated for every request of the batch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.protocol import Watch, main

torch: Any = importlib.import_module("torch")
library: Any = importlib.import_module("transformers")


class Transformers:
    """One model."""

    def __init__(self, work: dict[str, Any], variant: str) -> None:
        torch.set_num_threads(work["threads"])
        self._model = load(work["model"]["gguf"])
        self._model.generation_config.eos_token_id = None  # fixed lengths
        self._model.generation_config.pad_token_id = 0

    def generate(self, row: dict[str, Any], watch: Callable[[], Watch]) -> Watch:
        prompts, shared = row["prompts"], row["shared_len"]
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        clock = watch()

        def seen(input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            clock.tokens({i: [t] for i, t in enumerate(input_ids[:, -1].tolist())})
            return torch.zeros(len(prompts), dtype=torch.bool)

        with torch.inference_mode():
            cache = library.DynamicCache()
            if shared:
                self._model(ids[:1, :shared], past_key_values=cache, logits_to_keep=1)
                cache.batch_repeat_interleave(len(prompts))
            self._model.generate(
                ids,
                attention_mask=mask,
                past_key_values=cache,
                do_sample=False,
                max_new_tokens=row["num_new"],
                stopping_criteria=[seen],
            )
        return clock

    def extract(self, row: dict[str, Any]) -> tuple[float, list[str]]:
        raise NotImplementedError("transformers has no constrained decoding of its own: see outlines")

    def close(self) -> None:
        del self._model


def load(path: str) -> Any:
    """The file in fp32."""
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    where = {"pretrained_model_name_or_path": Path(path).parent, "gguf_file": Path(path).name}
    return library.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()


if __name__ == "__main__":
    main(Transformers, ["transformers", "torch"])
