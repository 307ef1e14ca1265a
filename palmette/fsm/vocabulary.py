"""A tokenizer's vocabulary as byte strings, with the trie and the slices that masks are computed on.

Knows bytes and ids; nothing of automata, texts or merges. Built once per tokenizer and shared by all constraints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import pairwise

from palmette.errors import InvalidOption
from palmette.fsm.slices import Slice, build_slices
from palmette.fsm.trie import Trie


class Vocabulary:
    """Token id -> bytes.

    Args:
        tokens: the bytes of each id; empty for special tokens, which no constraint ever allows.
        eos_ids: ids that end a sequence: allowed exactly where the constraint is satisfied.
    """

    def __init__(self, tokens: Sequence[bytes], *, eos_ids: Iterable[int]) -> None:
        self.tokens = tuple(tokens)
        self.eos_ids = tuple(sorted(set(eos_ids)))
        for token in self.eos_ids:
            if not 0 <= token < len(self.tokens):
                raise InvalidOption("eos_ids", token, f"a token id below {len(self.tokens)}")
        ends = set(self.eos_ids)
        self.plain = [(t, i) for i, t in enumerate(self.tokens) if t and i not in ends]
        self.trie = Trie.build(self.plain)
        self.single_bytes = frozenset(t[0] for t, _ in self.plain if len(t) == 1)
        self.max_token_len = max((len(t) for t, _ in self.plain), default=0)
        digest = hashlib.sha256(repr(self.eos_ids).encode())
        for token_bytes in self.tokens:
            digest.update(len(token_bytes).to_bytes(4, "little") + token_bytes)
        self.digest = digest.hexdigest()
        self._children: dict[int, int] | None = None
        self._greedy: dict[bytes, int] | None = None
        self._slices: tuple[Slice, ...] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def mask_words(self) -> int:
        """uint32 words of a mask: bit `id % 32` of word `id // 32` belongs to token `id`."""
        return (len(self.tokens) + 31) // 32

    @property
    def children(self) -> dict[int, int]:
        """node * 256 + byte -> child node, over whole-trie node numbers."""
        if self._children is None:
            self._children = {}
            for above, level in pairwise(self.trie.levels):
                keys = (above.offset + level.parents) * 256 + level.bytes
                self._children.update(zip(keys.tolist(), range(level.offset, level.offset + len(keys)), strict=True))
        return self._children

    @property
    def slices(self) -> tuple[Slice, ...]:
        """Precomputed masks of common classes of characters."""
        if self._slices is None:
            self._slices = build_slices(self.plain, self.mask_words)
        return self._slices

    def ids_at(self, node: int) -> list[int]:
        """Tokens whose bytes end at `node`."""
        trie = self.trie
        ids: list[int] = trie.token_ids[trie.token_start[node] : trie.token_start[node + 1]].tolist()
        return ids

    def greedy(self, data: bytes) -> list[int]:
        """`data` as the longest token from the left, and so on. Needs a token for every byte in `data`.

        Raises:
            KeyError: a byte of `data` begins no token.
        """
        if self._greedy is None:
            self._greedy = dict(reversed(self.plain))  # the lowest id of equal tokens
        out: list[int] = []
        at = 0
        while at < len(data):
            end = min(len(data), at + self.max_token_len)
            while data[at:end] not in self._greedy and end > at + 1:
                end -= 1
            out.append(self._greedy[data[at:end]])
            at = end
        return out
