"""transformers as a peer: `generate` in fp32, one request after the other, with its own KV reuse."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from palmette.runtime.models.load import find_model
from palmette.runtime.models.loaded import LoadedModel
from palmette.types import GenerateRequest, Request, ScoreRequest


class TransformersPeer:
    """The same model in transformers, driven the best way it allows for single requests.

    It keeps the KV of its last sequence and, for the next request, drops what is behind the common prefix: the reuse a
    careful script would write.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        path, _ = find_model(loaded.name)
        where: dict[str, Any] = {"gguf_file": path.name} if path.is_file() else {}
        folder = path.parent if path.is_file() else path
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **where).eval()
        self._cache_type = transformers.DynamicCache

    def run(self, requests: Sequence[Request], num_new: dict[str, int]) -> tuple[float, int]:
        """Answer the requests in order; `num_new` tells how many tokens each generates.

        Returns:
            Seconds, and the prompt tokens that were computed.
        """
        cache, computed = self._cache_type(), 0
        held: list[int] = []
        start = time.perf_counter()
        with torch.inference_mode():
            for request in requests:
                prompt = list(request.token_ids)
                keep = min(_common(held, prompt), len(prompt) - 1)
                _keep(cache, keep)
                computed += len(prompt) - keep
                if isinstance(request, GenerateRequest):
                    held = self._generate(prompt, num_new[request.request_id], cache)
                elif isinstance(request, ScoreRequest):
                    held = self._score(prompt, request, cache)
        return time.perf_counter() - start, computed

    def _generate(self, prompt: list[int], count: int, cache: Any) -> list[int]:
        if count == 0:
            return prompt[: cache.get_seq_length()]
        ids = torch.tensor([prompt])
        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
            pad_token_id=0,
        )
        tokens: list[int] = out[0].tolist()
        return tokens[: cache.get_seq_length()]

    def _score(self, prompt: list[int], request: ScoreRequest, cache: Any) -> list[int]:
        """Each choice behind the cached prompt, one forward pass each."""
        trie = request.trie
        leaves = set(range(len(trie.parents))) - set(trie.parents)
        for leaf in sorted(leaves):
            path: list[int] = []
            node = leaf
            while node >= 0:
                path.append(trie.token_ids[node])
                node = trie.parents[node]
            have = min(cache.get_seq_length(), len(prompt) - 1)
            _keep(cache, have)
            self._model(torch.tensor([[*prompt[have:], *reversed(path)]]), past_key_values=cache)
            _keep(cache, len(prompt))
        return prompt


def _keep(cache: Any, length: int) -> None:
    """Drop what is behind the first `length` tokens."""
    surplus = cache.get_seq_length() - length
    if surplus > 0:
        cache.crop(-surplus)


def _common(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
