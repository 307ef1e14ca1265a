"""What an engine asks of one request's place in a constraint, whoever computes it.

`matcher.Matcher` is the product's own; others offer the same (`llguidance_engine`). Knows no automaton.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from palmette.fsm.slices import Mask

Encode = Callable[[bytes], Sequence[int] | None]  # the tokenizer, on text without special tokens; None = cannot say


class Cursor(Protocol):
    """Cheap to fork. Not thread-safe. `Matcher`'s docstrings say what each member promises."""

    @property
    def is_accepting(self) -> bool: ...

    @property
    def is_terminated(self) -> bool: ...

    @property
    def tokens(self) -> tuple[int, ...]: ...

    @property
    def forced_plan(self) -> tuple[int, ...]: ...

    def mask(self) -> Mask: ...

    def fill_mask(self, out: Mask, *, budget: int | None = None) -> None: ...

    def advance(self, token: int) -> None: ...

    def try_advance(self, token: int) -> bool: ...

    def advance_bytes(self, data: bytes) -> bool: ...

    def rollback(self, readings: int) -> None: ...

    def fork(self) -> Cursor: ...

    def forced_bytes(self) -> bytes: ...

    def forced_tokens(self, encode: Encode, tail: Sequence[int] = ()) -> list[int]: ...

    def plan_forced(self, encode: Encode, tail: Sequence[int] = ()) -> list[int]: ...

    def cost_to_accept(self) -> int: ...


class CompiledConstraint(Protocol):
    """A constraint over one vocabulary, shared by any number of cursors."""

    @property
    def key(self) -> str: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def unenforced(self) -> tuple[str, ...]: ...

    def matcher(self) -> Cursor: ...
