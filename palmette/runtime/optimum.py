"""What an infinite cache with in-flight sharing would have had to compute: the yardstick of the real one.

Each distinct token path counts once, and a request whose whole prompt is known counts one token, since logits need one
(of the forced text behind the prompt where there is some). Written apart from RadixCache on purpose: it is its oracle.
Remembers every path it saw.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from palmette.runtime.radix_node import TOKEN_CODE, common_len


class ReuseOptimum:
    """Counts over the requests of a runtime, in the order in which they came."""

    def __init__(self) -> None:
        self.computed_tokens = 0  # prompt tokens that had to be computed
        self.prompt_tokens = 0
        self._roots: dict[str, _Edges] = {}

    def add_prompt(self, namespace: str, token_ids: Sequence[int], *, at_least: int = 1) -> int:
        """Count a request with a prompt of at least one token.

        Args:
            at_least: 0 where something known follows the prompt, whose logits do then.

        Returns:
            How many of its tokens had to be computed.
        """
        computed = max(at_least, self._record(namespace, array(TOKEN_CODE, token_ids)))
        self.prompt_tokens += len(token_ids)
        self.computed_tokens += computed
        return computed

    def add_path(self, namespace: str, token_ids: Sequence[int]) -> None:
        """A path whose keys and values decoding computed: a prompt and the sampled tokens but the last."""
        self._record(namespace, array(TOKEN_CODE, token_ids))

    def _record(self, namespace: str, tokens: array[int]) -> int:
        """Make the path known. Returns how many of its tokens were not."""
        edges = self._roots.setdefault(namespace, {})
        at = 0
        while at < len(tokens):
            edge = edges.get(tokens[at])
            if edge is None:
                edges[tokens[at]] = (tokens[at:], {})
                return len(tokens) - at
            key, below = edge
            same = common_len(tokens, at, key, min(len(key), len(tokens) - at))
            at += same
            if same < len(key):
                lower: _Edges = {key[same]: (key[same:], below)}
                edges[key[0]] = (key[:same], lower)
                below = lower
            edges = below
        return 0


_Edges = dict[int, tuple["array[int]", "_Edges"]]  # first token -> (tokens of the edge, edges behind it)
