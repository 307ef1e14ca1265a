"""The tokens of a stream as an immutable chain of segments, shared by forks.

A fork, a checkpoint or a copy is a reference to a segment: O(1). Appending makes a new segment; nothing is ever
changed, tokenized again or copied: a request's prompt is the chain itself. The chain knows nothing of streams, holes
or models.
"""

from __future__ import annotations

from collections.abc import Sequence

from palmette.types import TokenPath


class TokenChain(TokenPath):
    """A segment with its text and, by `before`, all before it. `text_len` counts characters from the start."""

    __slots__ = ("before", "text", "text_len")

    def __init__(self, before: TokenChain | None, token_ids: Sequence[int], text: str) -> None:
        super().__init__(before, token_ids)
        self.before = before
        self.text = text
        self.text_len: int = len(text) + (before.text_len if before is not None else 0)

    def extend(self, token_ids: Sequence[int], text: str) -> TokenChain:
        return TokenChain(self, token_ids, text) if token_ids or text else self

    def extends(self, base: TokenChain) -> bool:
        """Whether `base` is one of this chain's segments."""
        segment: TokenPath | None = self
        while segment is not None and segment is not base:
            segment = segment.parent
        return segment is not None

    def ids_since(self, base: TokenChain) -> tuple[int, ...]:
        """The tokens after `base`, which must be one of this chain's segments."""
        return self.ids_from(base.length)

    def text_from(self, start: int) -> str:
        """The text from character `start` on."""
        parts: list[str] = []
        segment: TokenChain | None = self
        while segment is not None and segment.text_len > start:
            parts.append(segment.text)
            segment = segment.before
        base = segment.text_len if segment is not None else 0
        return "".join(reversed(parts))[start - base :]


EMPTY = TokenChain(None, (), "")
