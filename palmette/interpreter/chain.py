"""The tokens of a stream as an immutable chain of segments, shared by forks.

A fork, a checkpoint or a copy is a reference to a segment: O(1). Appending makes a new segment; nothing is ever
changed or tokenized again. The chain knows nothing of streams, holes or models.
"""

from __future__ import annotations

from collections.abc import Sequence


class TokenChain:
    """A segment and, by `parent`, all before it. `length` counts tokens, `text_len` characters, from the start."""

    __slots__ = ("_ids", "length", "parent", "text", "text_len", "token_ids")

    def __init__(self, parent: TokenChain | None, token_ids: Sequence[int], text: str) -> None:
        self.parent = parent
        self.token_ids = tuple(token_ids)
        self.text = text
        self.length: int = len(self.token_ids) + (parent.length if parent else 0)
        self.text_len: int = len(text) + (parent.text_len if parent else 0)
        self._ids: tuple[int, ...] | None = None

    def extend(self, token_ids: Sequence[int], text: str) -> TokenChain:
        return TokenChain(self, token_ids, text) if token_ids or text else self

    def all_ids(self) -> tuple[int, ...]:
        """Every token from the start."""
        parts: list[tuple[int, ...]] = []
        segment: TokenChain | None = self
        while segment is not None:
            if segment._ids is not None:
                parts.append(segment._ids)
                break
            parts.append(segment.token_ids)
            segment = segment.parent
        return tuple(token for part in reversed(parts) for token in part) if len(parts) > 1 else parts[0]

    def share(self) -> TokenChain:
        """Flatten once here, so that the branches of a fork do not each walk the common part."""
        self._ids = self.all_ids()
        return self

    def extends(self, base: TokenChain) -> bool:
        """Whether `base` is one of this chain's segments."""
        segment: TokenChain | None = self
        while segment is not None and segment is not base:
            segment = segment.parent
        return segment is not None

    def ids_since(self, base: TokenChain) -> tuple[int, ...]:
        """The tokens after `base`, which must be one of this chain's segments."""
        return self.all_ids()[base.length :]

    def text_from(self, start: int) -> str:
        """The text from character `start` on."""
        parts: list[str] = []
        segment: TokenChain | None = self
        while segment is not None and segment.text_len > start:
            parts.append(segment.text)
            segment = segment.parent
        base = segment.text_len if segment is not None else 0
        return "".join(reversed(parts))[start - base :]


EMPTY = TokenChain(None, (), "")
