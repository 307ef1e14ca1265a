"""A job's tokens: a prompt, read from its end and no further back than anybody asks, and what was sampled behind it.

    TokenPath     [ segment ] <-- [ segment ] <-- [ segment ]
    Tokens                          [ held: copied, grows to both sides            | sampled ]
                  0                 `_start                                         len(prompt)

Where the tree has the beginning of a stream already, nobody asks for those tokens. Knows neither tree nor job.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TypeAlias, overload

from palmette.runtime.radix_node import TOKEN_CODE
from palmette.types import TokenPath


class Tokens:
    """Reads like an array of token ids; slices are arrays. Indices count from the prompt's beginning."""

    __slots__ = ("_held", "_path", "_start")

    def __init__(self, ids: Sequence[int]) -> None:
        is_path = isinstance(ids, TokenPath)
        self._held: array[int] = array(TOKEN_CODE, () if is_path else ids)
        self._start = len(ids) if is_path else 0  # index of the first that is held
        self._path = ids if isinstance(ids, TokenPath) else None  # whose end is at _start

    @property
    def num_unread(self) -> int:
        """Tokens at the beginning that nobody asked for."""
        return self._start

    def __len__(self) -> int:
        return self._start + len(self._held)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> array[int]: ...
    def __getitem__(self, index: int | slice) -> int | array[int]:
        if isinstance(index, slice):
            begin, end, _ = index.indices(len(self))
            if begin < self._start and begin < end:
                self._read(begin)
            return self._held[begin - self._start : max(begin, end) - self._start]
        if index < 0:
            index += len(self)
        if index < self._start:
            self._read(index)
        return self._held[index - self._start]

    def append(self, token_id: int) -> None:
        self._held.append(token_id)

    def extend(self, token_ids: Sequence[int]) -> None:
        self._held.extend(token_ids)

    def truncate(self, length: int) -> None:
        """Forget sampled tokens from index `length` on."""
        assert length >= self._start, "a prompt is not cut"
        del self._held[length - self._start :]

    def _read(self, begin: int) -> None:
        """Hold all from `begin` on, and the rest of its segment."""
        parts: list[tuple[int, ...]] = []
        while self._start > begin:
            assert self._path is not None, "a path is as long as it says"
            parts.append(self._path.token_ids)
            self._start -= len(self._path.token_ids)
            self._path = self._path.parent
        held = array(TOKEN_CODE)
        for part in reversed(parts):
            held.extend(array(TOKEN_CODE, part))
        held.extend(self._held)
        self._held = held


TokenRow: TypeAlias = "array[int] | Tokens"  # what the tree can match
