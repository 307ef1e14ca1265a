"""What a request must be before it is queued: checked once, here, so that nothing after it can be broken by one.

Knows the sizes of model and pool. Everything it refuses becomes the request's terminal event.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from palmette.errors import InvalidOption, PromptTooLong
from palmette.runtime.choice_trie import trie_depth, trie_problem
from palmette.types import GenerateRequest, Request, ScoreRequest, TokenPath


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request can have."""

    vocab_size: int
    context_len: int  # tokens of prompt and output together
    kv_tokens: int  # slots of the pool
    page_size: int

    def check(self, request: Request) -> None:
        """
        Raises:
            PromptTooLong: longer than the context or the pool.
            InvalidOption: no token at all, a token id that the model does not have, or a malformed trie.
        """
        prompt_len = len(request.token_ids)
        if not prompt_len:
            raise InvalidOption("token_ids", (), "at least one token")
        self._check_ids("token_ids", request.token_ids)
        room = 0  # tokens that must fit behind the prompt
        if isinstance(request, GenerateRequest):
            room = int(request.params.max_new_tokens > 0)
            self._check_ids("stop_token_ids", request.params.stop_token_ids)
            self._check_ids("logit_bias", (token for token, _ in request.params.logit_bias))
        elif isinstance(request, ScoreRequest):
            problem = trie_problem(request.trie)
            if problem is not None:
                raise InvalidOption("trie", "...", f"a trie in depth-first order; {problem}")
            self._check_ids("trie", request.trie.token_ids)
            self._check_trie(request)
        if prompt_len + room > self.context_len:
            raise PromptTooLong(prompt_len, self.context_len - room, "the context")
        if prompt_len + room > self.kv_tokens:
            raise PromptTooLong(prompt_len, self.kv_tokens - room, "the KV pool")

    def max_new_tokens(self, request: GenerateRequest) -> int:
        """What fits behind the prompt of what the request wants."""
        prompt_len = len(request.token_ids)
        return min(request.params.max_new_tokens, self.context_len - prompt_len, self.kv_tokens - prompt_len)

    def _check_trie(self, request: ScoreRequest) -> None:
        """The prompt and all inner nodes stand side by side in the page table and in the pool."""
        prompt_len, trie = len(request.token_ids), request.trie
        num_inner = len({parent for parent in trie.parents if parent >= 0})
        if prompt_len + max(num_inner, trie_depth(trie)) > self.context_len:
            raise PromptTooLong(prompt_len, max(0, self.context_len - num_inner), "the context beside the choices")
        passes = 1 + request.unconditional
        if sum(map(self._pages, (prompt_len, *[num_inner] * passes))) > self.kv_tokens:
            limit = max(0, self.kv_tokens - passes * self._pages(num_inner))
            raise PromptTooLong(prompt_len, limit, "the KV pool beside the choices")

    def _pages(self, num_tokens: int) -> int:
        return num_tokens + -num_tokens % self.page_size

    def _check_ids(self, name: str, ids: Iterable[int]) -> None:
        if isinstance(ids, TokenPath) and ids.low >= 0 and ids.high < self.vocab_size:
            return  # it knows its bounds: nobody reads it again for every hole
        listed = ids if isinstance(ids, tuple) else tuple(ids)
        if listed and (min(listed) < 0 or max(listed) >= self.vocab_size):
            wrong = next(token for token in listed if not 0 <= token < self.vocab_size)
            raise InvalidOption(name, wrong, f"token ids from 0 to {self.vocab_size - 1}")
